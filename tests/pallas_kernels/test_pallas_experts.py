"""moe_grouped_matmul of the Pallas kernels, interpreted, against products with each expert's decoded weight."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matmul_inputs import FLOAT32, assert_close, blocks_of

import pallas_kernels.quantized_matmul as weights
from pallas_kernels.case import Backend
from pallas_kernels.moe_grouped_matmul import moe_grouped_matmul, reference_grouped_matmul
from pallas_kernels.moe_grouped_matmul.cases import SMALL_CASES, GroupedCase
from pallas_kernels.routing import block_rows, combine, gather, number_of_blocks, route

BACKENDS: tuple[Backend, ...] = ("triton", "tpu")
BY_KIND = {(case.kind, case.tokens): case for case in SMALL_CASES}
# One for each kernel of both backends: exact codes, and weights rounded to bfloat16.
FAST = (BY_KIND["Q4_K", 3], BY_KIND["Q6_K", 35])


def random_choices(rng: np.random.Generator, tokens: int, experts: int, most: int) -> np.ndarray:
    """Which experts each token goes to, `bool[tokens, experts]`: at most so many of them, often fewer."""
    order = np.argsort(rng.random((tokens, experts)), axis=1)
    return (order < most) & (rng.random((tokens, experts)) < 0.8)


class Inputs:
    """Random experts and tokens of a case; the last expert is chosen by nobody."""

    def __init__(self, case: GroupedCase, backend: Backend, dtype: str = "bfloat16") -> None:
        self.case = case
        self.backend: Backend = backend
        rng = np.random.default_rng(case.tokens)
        self.raw = blocks_of(case.kind, case.experts * case.rows, case.columns).reshape(case.experts, case.rows, -1)
        packed = weights.pack(case.kind, self.raw, case.columns, backend)
        self.stored = tuple(jnp.asarray(part) for part in packed)
        chosen = random_choices(rng, case.tokens, case.experts - 1, case.choices)
        router = np.pad(chosen, ((0, 0), (0, 1))).astype(np.float32)
        self.routing = route(jnp.asarray(router), most=case.choices, block=case.block)
        tokens = jnp.asarray(rng.normal(size=(case.tokens, case.columns)), dtype)
        self.x = gather(tokens, self.routing)

    @property
    def matrix(self) -> tuple[int, int]:
        return self.case.rows, self.case.columns

    def multiply(self, x: jax.Array) -> jax.Array:
        case, blocks = self.case, self.routing.blocks
        return moe_grouped_matmul(x, self.stored, case.kind, self.matrix, blocks, backend=self.backend, interpret=True)

    def check(self, y: jax.Array) -> None:
        """Each block within the bound of a product of so many rows; zeros behind the last that is used."""
        block, used = self.case.block, int(self.routing.blocks.used)
        assert 0 < used < self.case.blocks
        assert not np.asarray(y[used * block :]).any()
        for b in range(used):
            rows, own = slice(b * block, (b + 1) * block), self.raw[int(self.routing.blocks.owners[b])]
            assert_close(self.case.kind, self.backend, self.x[rows], own, y[rows])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "case",
    [case if case in FAST else pytest.param(case, marks=pytest.mark.slow) for case in SMALL_CASES],
    ids=lambda case: case.name,
)
def test_products_lie_within_the_derived_bound(case: GroupedCase, backend: Backend) -> None:
    inputs = Inputs(case, backend)
    # What lies in blocks that are not used is not looked at.
    behind = jnp.arange(len(inputs.x)) >= inputs.routing.blocks.used * case.block
    # What compiles fast runs long enough.
    compiled = jax.jit(inputs.multiply, compiler_options={"xla_llvm_disable_expensive_passes": True})
    y = compiled(jnp.where(behind[:, None], jnp.nan, inputs.x))
    assert (y.shape, y.dtype) == ((case.blocks * case.block, case.rows), jnp.bfloat16)
    inputs.check(y)


def test_small_cases_reach_every_block_size_that_kernels_tell_apart() -> None:
    assert {case.block for case in SMALL_CASES} == {8, 16, 32}
    assert [case.block for case in FAST] == [8, 32]


@pytest.mark.slow  # a whole mixture has float32 activations too
@pytest.mark.parametrize("backend", BACKENDS)
def test_float32_activations_keep_sixteen_bits(backend: Backend) -> None:
    inputs = Inputs(BY_KIND["Q4_0", 3], backend, "float32")
    y = inputs.multiply(inputs.x)
    assert y.dtype == jnp.float32
    inputs.check(y)


@pytest.mark.parametrize("backend", [pytest.param("triton", marks=pytest.mark.slow), "tpu"])
def test_derivatives_are_those_of_the_decoded_weights(backend: Backend) -> None:
    inputs = Inputs(BY_KIND["Q4_0", 3], backend, "float32")
    case, blocks = inputs.case, inputs.routing.blocks
    y, pull = jax.vjp(inputs.multiply, inputs.x)
    # A NaN behind the blocks that are used reaches nothing.
    used = int(blocks.used) * case.block
    seed = np.random.default_rng(0).normal(size=y.shape).astype(np.float32)
    seed[used:] = np.nan
    got = np.asarray(pull(jnp.asarray(seed))[0], np.float64)
    whole = np.asarray(weights.unpack(inputs.stored, case.kind, inputs.matrix, backend), np.float64)
    own = whole[np.repeat(np.asarray(blocks.owners), case.block)[:used]]
    exact = np.einsum("rn,rnk->rk", seed[:used].astype(np.float64), own)
    bound = (case.rows + 2) * FLOAT32 * np.einsum("rn,rnk->rk", np.abs(seed[:used]), np.abs(own))
    np.testing.assert_array_less(np.abs(got[:used] - exact), bound + 1e-30)
    assert not got[used:].any()
    reference = reference_grouped_matmul(inputs.x, inputs.stored, case.kind, inputs.matrix, blocks, backend)
    exact = np.einsum("rk,rnk->rn", np.asarray(inputs.x, np.float64)[:used], own)
    bound = (case.columns + 2) * FLOAT32 * np.einsum("rk,rnk->rn", np.abs(inputs.x[:used]), np.abs(own))
    np.testing.assert_array_less(np.abs(np.asarray(reference, np.float64)[:used] - exact), bound + 1e-30)


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 99))
def test_every_choice_has_a_row_among_its_experts(seed: int) -> None:
    tokens, most, count, block = 40, 3, 7, 16
    rng = np.random.default_rng(seed)
    chosen = random_choices(rng, tokens, count, most) & (rng.random(count) < rng.choice([0.0, 0.5, 1.0]))
    router = np.where(chosen, rng.normal(size=chosen.shape), 0).astype(np.float32)
    routing = jax.jit(route, static_argnames=("most", "block"))(jnp.asarray(router), most=most, block=block)
    source, place, weights = (np.asarray(part) for part in (routing.source, routing.place, routing.weights))
    owners, used = np.asarray(routing.blocks.owners), int(routing.blocks.used)
    assert (len(owners), len(source)) == (number_of_blocks(tokens * most, count, block), len(owners) * block)
    # An expert's rows are its tokens in their order, from the beginning of a block on, and then rows of no token.
    expected = [np.flatnonzero(chosen[:, e]) for e in range(count)]
    needed = [-(-len(own) // block) for own in expected]
    rows = [
        np.pad(own, (0, n * block - len(own)), constant_values=tokens) for own, n in zip(expected, needed, strict=True)
    ]
    assert used == sum(needed)
    np.testing.assert_array_equal(owners[:used], np.repeat(np.arange(count), needed))
    np.testing.assert_array_equal(source[: used * block], np.concatenate(rows))
    assert (source[used * block :] == tokens).all()
    for t in range(tokens):
        own = np.flatnonzero(chosen[t])
        np.testing.assert_array_equal(owners[place[t, : len(own)] // block], own)
        np.testing.assert_array_equal(source[place[t, : len(own)]], t)
        np.testing.assert_array_equal(weights[t, : len(own)], router[t, own])
        assert (place[t, len(own) :] == len(source)).all()
        assert not weights[t, len(own) :].any()


def test_choices_are_added_with_their_weights() -> None:
    """In numbers that float32 holds exactly."""
    router = np.asarray([[2, 0, 0.5, 0], [1, 0.25, 0, 0], [0, 0, -4, 0]], np.float32)
    routing = route(jnp.asarray(router), most=2, block=8)
    x = jnp.asarray(np.arange(12).reshape(3, 4), jnp.bfloat16)
    y = gather(x, routing) * (1 + jnp.repeat(routing.blocks.owners, 8))[:, None].astype(jnp.bfloat16)
    factors = (router * np.arange(1, 5)).sum(axis=1, keepdims=True)
    np.testing.assert_array_equal(combine(y, routing), factors * np.asarray(x, np.float32))


@pytest.mark.parametrize(
    ("choices", "experts", "rows", "blocks"),
    [(8, 128, 8, 8), (128, 128, 8, 128), (4096, 128, 32, 252), (1024, 8, 128, 15)],
)
def test_blocks_hold_what_an_expert_has_on_average(choices: int, experts: int, rows: int, blocks: int) -> None:
    assert block_rows(choices, experts) == rows
    assert number_of_blocks(choices, experts, rows) == blocks


def test_errors_name_the_rule() -> None:
    inputs = Inputs(BY_KIND["Q8_0", 3], "triton")
    kind, blocks = inputs.case.kind, inputs.routing.blocks
    with pytest.raises(ValueError, match="x must have 4 blocks of rows and the weight's 256 columns, got shape"):
        moe_grouped_matmul(inputs.x[:-1], inputs.stored, kind, inputs.matrix, blocks, backend="triton")
    none = route(jnp.zeros((0, 4)), most=2, block=8)
    nothing = moe_grouped_matmul(inputs.x[:0], inputs.stored, kind, inputs.matrix, none.blocks, backend="triton")
    assert combine(nothing, none).shape == (0, inputs.case.rows)
    huge = GroupedCase(kind="Q8_0", tokens=1, choices=1, experts=2**12, rows=2**10, columns=2**10).program("triton")
    with pytest.raises(ValueError, match="planes of all experts must have less than 2 GiB on CUDA, got 4294967296"):
        jax.eval_shape(huge.function, *huge.operands)
