"""grouped_lora through XLA and through interpreted kernels: numbers, derivatives, what a row depends on, errors."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ops.lora_cases import FLOAT32, Operands, assert_close, draw

from pallas_kernels.grouped_lora.cases import SMALL_CASES, LoraCase
from realm_jax.ops import grouped_lora

IMPLEMENTATIONS = ("xla", "triton_interpreted", "tpu_interpreted")
ALL = [pytest.param(one, marks=[] if one == "xla" else pytest.mark.slow) for one in IMPLEMENTATIONS]
# Several tokens an adapter and adapters without any; more adapters than tokens.
FEW = LoraCase(tokens=7, active=3, adapters=4, rank=8, outputs=12, columns=20, dtype="float32")
MANY = LoraCase(tokens=3, active=2, adapters=5, rank=8, outputs=12, columns=20, dtype="float32")


# What compiles fast runs long enough.
jit = functools.partial(jax.jit, compiler_options={"xla_llvm_disable_expensive_passes": True})


@functools.lru_cache
def compiled(implementation: str | None) -> Callable[..., jax.Array]:
    return jit(functools.partial(grouped_lora, implementation=implementation))


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=[] if i < 2 else pytest.mark.slow) for i, case in enumerate(SMALL_CASES)],
    ids=lambda case: case.name,
)
def test_the_reference_lies_within_its_bound(case: LoraCase) -> None:
    operands = draw(case)
    y = compiled(None)(*operands)
    assert y.dtype == case.dtype
    assert_close(operands, y, kernel=False)


@settings(max_examples=15)
@given(data=st.data(), case=st.sampled_from([FEW, MANY]))
def test_any_ids(data: st.DataObject, case: LoraCase) -> None:
    """Ids outside of the adapters are those of no adapter, and all may be one."""
    one = st.integers(-2, case.adapters)
    ids = data.draw(st.lists(one, min_size=case.tokens, max_size=case.tokens) | one.map(lambda i: [i] * case.tokens))
    operands = draw(case, np.asarray(ids))
    for implementation in IMPLEMENTATIONS if case == FEW else ("xla",):
        assert_close(operands, compiled(implementation)(*operands), kernel=implementation != "xla")


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_row_depends_on_nothing_else(implementation: str) -> None:
    """Its bits stay when it stands elsewhere, and when all other rows have other tokens and adapters."""
    x, a, b, ids, scale = draw(FEW, np.asarray([0, 1, 2, 3, 1, 1, 0]))
    y = compiled(implementation)(x, a, b, ids, scale)
    order = np.random.default_rng(0).permutation(len(x))
    np.testing.assert_array_equal(compiled(implementation)(x[order], a, b, ids[order], scale), y[order])
    for t in range(len(x)):
        alone = jnp.where(jnp.arange(len(x)) == t, ids, (ids + t) % 5 - 1)
        others = jnp.where((jnp.arange(len(x)) == t)[:, None], x, 3 - x)
        np.testing.assert_array_equal(compiled(implementation)(others, a, b, alone, scale)[t], y[t])


def dense(x: jax.Array, a: jax.Array, b: jax.Array, scale: jax.Array, ids: jax.Array) -> jax.Array:
    """The equation with a matrix of its own for each token."""
    one = jax.nn.one_hot(ids, len(a), dtype=jnp.float32)
    matrices = jnp.einsum("te,e,enr,erk->tnk", one, scale, b, a, precision="highest")
    return jnp.einsum("tnk,tk->tn", matrices, x, precision="highest")


@pytest.mark.parametrize("implementation", ALL)
def test_derivatives_are_those_of_the_dense_formula(implementation: str) -> None:
    operands = draw(FEW, np.asarray([2, 0, -1, 2, 1, 9, 0]))
    x, a, b, ids, scale = (jnp.nan_to_num(array) for array in operands)
    seed = jnp.asarray(np.random.default_rng(1).normal(size=(FEW.tokens, FEW.outputs)), jnp.float32)

    def loss(x: jax.Array, a: jax.Array, b: jax.Array, scale: jax.Array) -> jax.Array:
        return jnp.vdot(seed, grouped_lora(x, a, b, ids, scale, implementation=implementation))

    by = (0, 1, 2, 3)
    found = jit(jax.grad(loss, argnums=by))(x, a, b, scale)
    slope = jit(jax.grad(lambda seed, *args: jnp.vdot(seed, dense(*args, ids)), argnums=tuple(i + 1 for i in by)))
    exact = slope(seed, x, a, b, scale)
    # The formula is a polynomial: its derivative at absolute values is the sum of its terms' magnitudes. Both sides
    # add up columns, ranks, outputs and tokens in turn.
    sizes = slope(*(jnp.abs(array) for array in (seed, x, a, b, scale)))
    terms = FEW.columns + FEW.rank + FEW.outputs + FEW.tokens + FEW.adapters
    for one, right, size in zip(found, exact, sizes, strict=True):
        assert np.any(one)
        np.testing.assert_array_less(np.abs(one - right), 2 * terms * FLOAT32 * size + 1e-30)


def test_derivatives_have_the_types_of_what_they_are_by() -> None:
    case = LoraCase(tokens=4, active=2, adapters=2, rank=8, outputs=6, columns=10)
    x, a, b, ids, scale = draw(case)

    def pull(x: jax.Array, dy: jax.Array) -> tuple[jax.Array, ...]:
        return jax.vjp(lambda *args: grouped_lora(*args[:3], ids, args[3]), x, a, b, scale)[1](dy)

    derivatives = jit(pull)(jnp.nan_to_num(x), jnp.ones((4, 6), jnp.bfloat16))
    assert [(one.shape, one.dtype) for one in derivatives] == [(o.shape, o.dtype) for o in (x, a, b, scale)]
    assert not derivatives[0][-1].any()


@pytest.mark.parametrize("implementation", ALL)
def test_axes_are_mapped_over(implementation: str) -> None:
    """Over tokens with their ids, and over all operands."""
    several = [draw(MANY, np.asarray(ids), seed) for seed, ids in enumerate([[0, 1, -1], [4, 4, 4]])]
    kernel = implementation != "xla"
    stacked = [jnp.stack(parts) for parts in zip(*several, strict=True)]
    apply = functools.partial(grouped_lora, implementation=implementation)
    for y, one in zip(jit(jax.vmap(apply))(*stacked), several, strict=True):
        assert_close(one, y, kernel=kernel)
    x, a, b, ids, scale = (jnp.nan_to_num(array) for array in several[0])
    ys = jit(jax.vmap(apply, in_axes=(0, None, None, 0, None)))(stacked[0], a, b, jnp.stack([ids, ids[::-1]]), scale)
    for i, y in enumerate(ys):
        assert_close(Operands(x=stacked[0][i], a=a, b=b, ids=ids[:: 1 - 2 * i], scale=scale), y, kernel=kernel)


def test_the_reference_has_no_adapter_for_each_token() -> None:
    case = LoraCase(tokens=2048, active=2, adapters=8, rank=16, outputs=256, columns=256, dtype="float32")
    compiled = jax.jit(grouped_lora).lower(*case.operands).compile()
    memory = compiled.memory_analysis()
    assert memory is not None
    # Rows of x and of the result with those of blocks that are not full, and one hot ids, several times.
    rows = case.tokens + case.adapters * 512
    assert memory.temp_size_in_bytes < 4 * rows * (case.columns + case.outputs + 4 * case.adapters)
    assert memory.temp_size_in_bytes < 4 * case.tokens * case.rank * case.columns / 2


def test_nothing_is_made_of_nothing() -> None:
    x, a, b, ids, scale = draw(MANY)
    for implementation in IMPLEMENTATIONS:
        assert grouped_lora(x[:0], a, b, ids[:0], scale, implementation=implementation).shape == (0, MANY.outputs)
        none = grouped_lora(x, a[:0], b[:0], ids, scale[:0], implementation=implementation)
        assert none.shape == (MANY.tokens, MANY.outputs) and not none.any()


def test_errors_name_the_rule() -> None:
    x, a, b, ids, scale = draw(MANY)
    with pytest.raises(ValueError, match=r"x must be floats \[tokens, columns\], got float32 \(20,\)"):
        grouped_lora(x[0], a, b, ids, scale)
    with pytest.raises(ValueError, match=r"a must be \[adapters, rank, 20\] for x of 20 columns, got \(5, 20, 8\)"):
        grouped_lora(x, jnp.swapaxes(a, 1, 2), b, ids, scale)
    with pytest.raises(ValueError, match=r"b must be \[5, outputs, 8\] for a of .*, got \(5, 8, 12\); swap its axes"):
        grouped_lora(x, a, jnp.swapaxes(b, 1, 2), ids, scale)
    with pytest.raises(ValueError, match="must both be bfloat16 or both float32, got bfloat16 and float16"):
        grouped_lora(x, a, b.astype(jnp.float16), ids, scale)
    with pytest.raises(ValueError, match=r"adapter_ids must be int32\[3\], one a token, got int32 \(2,\)"):
        grouped_lora(x, a, b, ids[:2], scale)
    with pytest.raises(ValueError, match=r"scale must be float32\[5\], one an adapter, got float32 \(\)"):
        grouped_lora(x, a, b, ids, jnp.float32(2))
    with pytest.raises(ValueError, match="implementation must be one of"):
        grouped_lora(x, a, b, ids, scale, implementation="cuda")
    wide = LoraCase(tokens=1, active=1, adapters=1, rank=136, outputs=8, columns=8)
    with pytest.raises(ValueError, match="rank must be at most 128 for Pallas kernels, got 136; use 'xla'"):
        grouped_lora(*draw(wide), implementation="tpu_interpreted")
