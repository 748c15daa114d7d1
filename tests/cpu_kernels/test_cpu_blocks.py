"""A block in one call has the bits, derivatives and batches of the operations that it stands for."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from packed_cases import blocks_of

import cpu_kernels
from cpu_kernels import AttentionOptions, InstructionSet, PackedMatrix, Rms

pytestmark = pytest.mark.skipif(not cpu_kernels.is_available(), reason="needs the native library")

COLUMNS, HEADS, KV_HEADS, HEAD_DIM, BLOCK_SIZE = 96, 6, 2, 32, 16
TOKENS, PAIRS = 7, 8


def normal(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def matrix(kind: str, rows: int, columns: int, *, bias: bool = False) -> PackedMatrix:
    tiles = jnp.asarray(cpu_kernels.pack(kind, blocks_of(kind, rows, columns), columns))
    return PackedMatrix(tiles=tiles, kind=kind, shape=(rows, columns), bias=normal(rows, seed=rows) if bias else None)


def norm(size: int = COLUMNS, seed: int = 5) -> Rms:
    return Rms(weight=1 + 0.1 * normal(size, seed=seed), eps=1e-5)


def mlp(bias: bool = False) -> tuple[PackedMatrix, PackedMatrix, PackedMatrix]:
    return (
        matrix("Q4_1", 160, COLUMNS, bias=bias),
        matrix("Q5_0", 160, COLUMNS),
        matrix("Q8_0", COLUMNS, 160, bias=bias),
    )


def mlp_in_one(x: jax.Array, *, bias: bool = False, activation: cpu_kernels.Gate = "silu", **given: Any) -> jax.Array:
    return cpu_kernels.gated_mlp(x, *mlp(bias), activation, **given)


def mlp_in_two(x: jax.Array, *, bias: bool = False, activation: cpu_kernels.Gate = "silu", **given: Any) -> jax.Array:
    gate, up, down = mlp(bias)
    hidden = cpu_kernels.project_gated(x, gate, up, activation, norm=given.pop("norm", None))
    return cpu_kernels.project_add(hidden, down, x, **given)


NORMS = [{}, {"norm": norm()}, {"norm": norm(), "post_norm": norm(seed=6), "scale": 0.3}]


@pytest.mark.parametrize("given", NORMS, ids=["plain", "norm", "post_norm"])
@pytest.mark.parametrize("tokens", [1, 5, 40])
def test_an_mlp_is_its_two_projections(tokens: int, given: dict[str, Any]) -> None:
    x = normal(tokens, COLUMNS)
    for bias, activation in ((False, "silu"), (True, "gelu_tanh")):
        options: Any = {"bias": bias, "activation": activation, **given}
        whole = mlp_in_one(x, **options)
        np.testing.assert_array_equal(whole, mlp_in_two(x, **options))
        assert np.abs(whole - x).max() > 0.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """What an attention has beside q, k and v."""

    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    sinks: bool = False
    bias: bool = False
    kind: str = "float16"
    given: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def spec(self) -> AttentionOptions:
        return AttentionOptions(block_size=BLOCK_SIZE, scale=HEAD_DIM**-0.5, norm_eps=1e-6, **self.options)

    @property
    def matrices(self) -> tuple[PackedMatrix, PackedMatrix, PackedMatrix]:
        def of(kind: str, heads: int) -> PackedMatrix:
            return matrix(kind, heads * HEAD_DIM, COLUMNS, bias=self.bias)

        return of("Q4_1", HEADS), of("Q8_0", KV_HEADS), of("F16", KV_HEADS)

    @property
    def beside(self) -> dict[str, Any]:
        style, qk_norm = self.spec.rope_style, self.spec.norm
        sizes = (1, 1) if qk_norm == "head" else (HEADS, KV_HEADS)
        return {
            "rope": None if style is None else (normal(TOKENS, PAIRS, seed=8), normal(TOKENS, PAIRS, seed=9)),
            "norms": None if qk_norm is None else tuple(1 + 0.1 * normal(n * HEAD_DIM, seed=n) for n in sizes),
            "sinks": normal(HEADS, seed=7) if self.sinks else None,
        }


CASES = {
    "plain": Case(),
    "llama": Case(options={"rope_style": "interleaved"}, given={"norm": norm()}),
    "gemma": Case(
        options={"rope_style": "half", "norm": "head", "window": 4, "softcap": 20.0},
        given={"norm": norm(), "post_norm": norm(seed=6)},
    ),
    "olmo": Case(options={"rope_style": "half", "norm": "full"}, bias=True, kind="q8_0", given={"scale": 0.3}),
    "oss": Case(options={"rope_style": "half", "window": 3}, sinks=True, bias=True, kind="bfloat16"),
}


def batch() -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Three tokens at the end of one sequence, two at the begin of another, two of padding."""
    positions = jnp.array([19, 20, 21, 0, 1, 0, 0], jnp.int32)
    starts, lengths = jnp.array([0, 3, 5], jnp.int32), jnp.array([22, 2], jnp.int32)
    return positions, starts, lengths, jnp.array([[3, 1], [2, 0]], jnp.int32)


def cache(kind: str) -> jax.Array:
    shape = cpu_kernels.cache_shape(5, BLOCK_SIZE, KV_HEADS, HEAD_DIM, kind)
    dtype = cpu_kernels.cache_dtype(kind)
    return jnp.zeros(shape, dtype) if kind == "q8_0" else normal(*shape, seed=3).astype(dtype)


def out_matrix() -> PackedMatrix:
    return matrix("Q5_0", COLUMNS, HEADS * HEAD_DIM, bias=True)


def in_one(x: jax.Array, pool: jax.Array, case: Case, **how: Any) -> tuple[jax.Array, jax.Array]:
    beside = case.beside
    given = {**case.given, "rope": beside["rope"], "head_norms": beside["norms"], "sinks": beside["sinks"], **how}
    return cpu_kernels.attention_block(x, case.matrices, out_matrix(), pool, batch(), case.spec, **given)


def in_three(x: jax.Array, pool: jax.Array, case: Case) -> tuple[jax.Array, jax.Array]:
    given = dict(case.given)
    projected = cpu_kernels.project(x, case.matrices, norm=given.pop("norm", None))
    q, k, v = (y.reshape(len(x), -1, HEAD_DIM) for y in projected)
    attended, pool = cpu_kernels.paged_attention((q, k, v), pool, batch(), case.spec, **case.beside)
    return cpu_kernels.project_add(attended.reshape(len(x), -1), out_matrix(), x, **given), pool


@pytest.mark.parametrize("name", CASES)
def test_an_attention_block_is_its_three_operations(name: str) -> None:
    case, x = CASES[name], normal(TOKENS, COLUMNS)
    whole, parts = in_one(x, cache(case.kind), case), in_three(x, cache(case.kind), case)
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_array_equal(np.asarray(one).view(np.uint8), np.asarray(other).view(np.uint8))


def test_a_donated_cache_is_updated_in_place() -> None:
    case, pool = CASES["llama"], cache("float16")
    address = pool.unsafe_buffer_pointer()
    _, written = jax.jit(lambda x, pool: in_one(x, pool, case), donate_argnums=1)(normal(TOKENS, COLUMNS), pool)
    assert written.unsafe_buffer_pointer() == address and pool.is_deleted()


def test_derivatives_are_those_of_the_operations() -> None:
    x, direction, case = normal(TOKENS, COLUMNS), normal(TOKENS, COLUMNS, seed=1), CASES["gemma"]
    pairs: list[tuple[Any, Any]] = [
        (partial(mlp_in_one, norm=norm()), partial(mlp_in_two, norm=norm())),
        (lambda x: in_one(x, cache("float16"), case)[0], lambda x: in_three(x, cache("float16"), case)[0]),
    ]
    for whole, parts in pairs:
        tangents = [jax.jit(lambda x, f=f: jax.jvp(f, (x,), (direction,))[1])(x) for f in (whole, parts)]
        np.testing.assert_array_equal(*tangents)
        gradients = [jax.jit(jax.grad(lambda x, f=f: jnp.vdot(f(x), direction)))(x) for f in (whole, parts)]
        np.testing.assert_array_equal(*gradients)
        assert np.all(np.abs(gradients[0]).max(axis=-1)[:5] > 0)


def test_a_batch_is_one_call_after_the_other() -> None:
    xs, case = normal(2, TOKENS, COLUMNS), CASES["llama"]
    pools = jnp.stack([cache("float16")] * 2)
    both = jax.vmap(mlp_in_one)(xs)
    outs, written = jax.vmap(lambda x, pool: in_one(x, pool, case))(xs, pools)
    for i, x in enumerate(xs):
        np.testing.assert_array_equal(both[i], mlp_in_one(x))
        out, pool = in_one(x, cache("float16"), case)
        np.testing.assert_array_equal(outs[i], out)
        np.testing.assert_array_equal(written[i], pool)


def test_the_null_set_takes_everything_and_returns_zeros() -> None:
    x, case = normal(TOKENS, COLUMNS), CASES["gemma"]
    out, pool = in_one(x, cache("float16"), case, instruction_set=InstructionSet.NULL)
    assert not np.any(out) and np.array_equal(pool, cache("float16"))
    assert not np.any(mlp_in_one(x, instruction_set=InstructionSet.NULL))


def test_the_profile_counts_the_parts() -> None:
    with cpu_kernels.profile() as times:
        jax.block_until_ready(mlp_in_one(normal(3, COLUMNS)))
        jax.block_until_ready(in_one(normal(TOKENS, COLUMNS), cache("float16"), CASES["llama"]))
    counted = {name: time.calls for name, time in times.items() if time.calls}
    assert counted == {"project": 1, "project_gated": 1, "project_add": 2, "paged_attention": 1}


def test_errors_name_the_rule() -> None:
    x, (gate, up, down), case = normal(TOKENS, COLUMNS), mlp(), CASES["llama"]
    q, k, _ = case.matrices
    with pytest.raises(ValueError, match=r"gate and up must have one shape and down its transpose"):
        cpu_kernels.gated_mlp(x, gate, up, gate, "silu")
    with pytest.raises(ValueError, match=r"x must be float32\[tokens, columns\]"):
        cpu_kernels.gated_mlp(x.astype(jnp.bfloat16), gate, up, down, "silu")
    with pytest.raises(ValueError, match=r"x must be float32\[tokens, columns\]"):
        cpu_kernels.gated_mlp(x[:, :64], gate, up, down, "silu")
    with pytest.raises(ValueError, match="q, k, v and out must follow each other"):
        cpu_kernels.attention_block(x, (q, k, q), out_matrix(), cache("float16"), batch(), case.spec)
    with pytest.raises(ValueError, match="rope must be given exactly"):
        in_one(x, cache("float16"), case, rope=None)
    positions, starts, lengths, table = batch()
    outside = (positions, starts, lengths, table + 9)

    def attend(x: jax.Array) -> Any:
        spec = CASES["plain"].spec
        return cpu_kernels.attention_block(x, case.matrices, out_matrix(), cache("float16"), outside, spec)

    with pytest.raises(jax.errors.JaxRuntimeError, match="block_table must name blocks"):
        jax.block_until_ready(jax.jit(attend)(x))
