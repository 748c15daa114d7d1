"""The native quantized_matmul against exact products, within derived bounds, and against itself, bit for bit."""

import concurrent.futures
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from packed_cases import FORMATS, block_size, blocks_of, decoded, error_bound, minima, pack, plain_error_bound

import cpu_kernels

pytestmark = pytest.mark.skipif(not cpu_kernels.is_available(), reason="needs the native library")

INSTRUCTION_SETS = cpu_kernels.available_instruction_sets() if cpu_kernels.is_available() else ()


def packed_case(kind: str, rows: int, columns: int) -> tuple[np.ndarray, jax.Array]:
    """The file's blocks and their tiles."""
    blocks = blocks_of(kind, rows, columns)
    return blocks, jnp.asarray(pack(kind, blocks, columns))


def activations(count: int, columns: int) -> np.ndarray:
    """Rows of normal numbers of various sizes, with outliers."""
    rng = np.random.default_rng(count)
    x = rng.normal(size=(count, columns)) * np.exp(rng.normal(size=(count, 1)))
    x[:, :: columns // 5] *= 30
    return x.astype(np.float32)


def adversarial_activations(columns: int) -> np.ndarray:
    """Zeros, subnormals, the smallest group that counts, huge values, ties, and single spikes."""
    rows = np.zeros((8, columns), np.float32)
    rows[1] = 1e-40
    rows[2] = np.float32(2.0**-119) * np.linspace(-1, 1, columns)
    rows[3] = 1e30 * np.where(np.arange(columns) % 3, 1, -1)
    rows[4] = np.arange(columns) % 255 - 127
    rows[5] = (np.arange(columns) % 32 == 31) * 1e4
    rows[6, 32:64] = 127
    rows[6, 33:64:2] = 0.5
    rows[7] = -1
    return rows


def assert_within_bound(kind: str, blocks: np.ndarray, x: np.ndarray, y: jax.Array) -> None:
    weights = decoded(kind, blocks)
    exact = x.astype(np.float64) @ weights.astype(np.float64).T
    plain = cpu_kernels.FORMATS[kind].plain is not None
    bound = plain_error_bound(x, weights) if plain else error_bound(x, weights, minima(kind, blocks))
    np.testing.assert_array_less(np.abs(np.asarray(y, np.float64) - exact), bound)


@pytest.mark.parametrize("kind", FORMATS)
def test_products_lie_within_the_derived_bound(kind: str) -> None:
    for rows, columns in ((1, 1), (37, 3), (16, 1), (64, 5)):
        columns *= block_size(kind)  # odd numbers of groups too where blocks have one
        blocks, packed = packed_case(kind, rows, columns)
        multiply = partial(cpu_kernels.quantized_matmul, packed=packed, kind=kind, shape=(rows, columns))
        by_each_set = jax.jit(lambda x, of=multiply: [of(x, instruction_set=each) for each in INSTRUCTION_SETS])
        for x in (activations(1, columns), activations(21, columns), adversarial_activations(columns)):
            results = by_each_set(jnp.asarray(x))
            assert_within_bound(kind, blocks, x, results[0])
            for instruction_set, y in zip(INSTRUCTION_SETS, results, strict=True):
                np.testing.assert_array_equal(y, results[0], err_msg=instruction_set.name)


@pytest.mark.parametrize("kind", FORMATS)
def test_results_do_not_depend_on_company_threads_or_instruction_set(kind: str) -> None:
    rows, columns = 83, 768
    _, packed = packed_case(kind, rows, columns)
    x = jnp.asarray(np.concatenate([activations(60, columns), adversarial_activations(columns)]))
    multiply = jax.jit(
        lambda x, **options: cpu_kernels.quantized_matmul(x, packed, kind, (rows, columns), **options),
        static_argnames=("instruction_set", "threads"),
    )
    whole = multiply(x)
    for count in (1, 2, 3, 5, 16, 17, 30):
        np.testing.assert_array_equal(multiply(x[:count]), whole[:count])
        np.testing.assert_array_equal(multiply(x[-count:]), whole[-count:])
    ways = [{"instruction_set": each, "threads": threads} for each in INSTRUCTION_SETS for threads in (1, 2, 5)]
    results = jax.jit(lambda x: [multiply(x, **way) for way in ways])(x)
    for way, y in zip(ways, results, strict=True):
        np.testing.assert_array_equal(y, whole, err_msg=str(way))
    np.testing.assert_array_equal(jax.vmap(multiply)(x), whole)
    np.testing.assert_array_equal(jax.vmap(jax.vmap(multiply))(x.reshape(4, 17, columns)), whole.reshape(4, 17, rows))


def test_vmap_over_weights_pairs_each_with_its_activations() -> None:
    kind, shape = "Q4_0", (20, 96)
    weights = jnp.stack(
        [jnp.asarray(cpu_kernels.pack(kind, blocks_of(kind, 60, 96)[i : i + 20], 96)) for i in (0, 20, 40)]
    )
    x = jnp.asarray(activations(12, 96)).reshape(3, 4, 96)
    multiply = lambda x, w: cpu_kernels.quantized_matmul(x, w, kind, shape)  # noqa: E731
    expected = jnp.stack([jnp.stack([multiply(x[j], weights[i]) for j in range(3)]) for i in range(3)])
    np.testing.assert_array_equal(jax.vmap(multiply)(x, weights), expected[jnp.arange(3), jnp.arange(3)])
    every_pair = jax.vmap(jax.vmap(multiply, (0, None)), (None, 0))
    np.testing.assert_array_equal(every_pair(x, weights), expected)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_a_value_that_is_not_finite_spoils_its_own_row_only(value: float) -> None:
    _, packed = packed_case("Q5_0", 16, 96)
    x = activations(5, 96)
    x[3, 40] = value
    for instruction_set in INSTRUCTION_SETS:
        multiply = partial(cpu_kernels.quantized_matmul, instruction_set=instruction_set)
        y = np.asarray(multiply(jnp.asarray(x), packed, "Q5_0", (16, 96)))
        assert np.isnan(y[3]).all()
        assert np.isfinite(np.delete(y, 3, axis=0)).all()


@pytest.mark.parametrize("kind", ["Q4_0", "Q6_K", "F16"])
def test_derivatives_are_those_of_the_decoded_weight(kind: str) -> None:
    rows, columns = 37, 512
    _, packed = packed_case(kind, rows, columns)
    weights = np.asarray(cpu_kernels.unpack(packed, kind, (rows, columns)), np.float64)
    x = jnp.asarray(activations(3, columns))
    seed = jnp.asarray(activations(3, rows))
    multiply = jax.jit(lambda x: cpu_kernels.quantized_matmul(x, packed, kind, (rows, columns)))
    _, pull = jax.vjp(multiply, x)
    exact = np.asarray(seed, np.float64) @ weights
    # Sums of 37 float32 products.
    bound = (rows + 2) * 2.0**-24 * (np.abs(np.asarray(seed, np.float64)) @ np.abs(weights))
    np.testing.assert_array_less(np.abs(pull(seed)[0] - exact), bound + 1e-30)
    _, tangent = jax.jvp(multiply, (x,), (x,))
    exact = np.asarray(x, np.float64) @ weights.T
    bound = (columns + 2) * 2.0**-24 * (np.abs(np.asarray(x, np.float64)) @ np.abs(weights).T)
    np.testing.assert_array_less(np.abs(tangent - exact), bound + 1e-30)


def test_bfloat16_activations_give_bfloat16() -> None:
    _, packed = packed_case("Q8_0", 16, 64)
    x = jnp.asarray(activations(2, 64)).astype(jnp.bfloat16)
    y = cpu_kernels.quantized_matmul(x, packed, "Q8_0", (16, 64))
    assert y.dtype == jnp.bfloat16
    wide = cpu_kernels.quantized_matmul(x.astype(jnp.float32), packed, "Q8_0", (16, 64))
    np.testing.assert_array_equal(y, wide.astype(jnp.bfloat16))


def test_no_rows_of_activations() -> None:
    _, packed = packed_case("Q8_0", 16, 64)
    assert cpu_kernels.quantized_matmul(jnp.zeros((0, 64)), packed, "Q8_0", (16, 64)).shape == (0, 16)


def test_errors_name_the_rule() -> None:
    _, packed = packed_case("Q8_0", 16, 64)
    with pytest.raises(ValueError, match="x must end in the weight's 64 columns, got shape"):
        cpu_kernels.quantized_matmul(jnp.zeros((1, 32)), packed, "Q8_0", (16, 64))
    with pytest.raises(jax.errors.JaxRuntimeError, match="not those of a matrix of this shape"):
        cpu_kernels.quantized_matmul(jnp.zeros((1, 64)), packed, "Q4_0", (16, 64)).block_until_ready()


def test_calls_from_many_threads_neither_mix_nor_wait_for_each_other() -> None:
    """Two chains of independent products in each of four threads, on a pool with fewer threads than that."""
    kind, shape = "Q4_1", (512, 512)
    _, packed = packed_case(kind, *shape)
    x = jnp.asarray(activations(4, 512))

    @jax.jit
    def chains(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        a = b = x
        for _ in range(20):
            a = cpu_kernels.quantized_matmul(a, packed, kind, shape)
            b = cpu_kernels.quantized_matmul(-b, packed, kind, shape)
            a, b = a / jnp.abs(a).max(), b / jnp.abs(b).max()
        return a, b

    expected = jax.tree.map(np.asarray, chains(x))
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for results in [pool.submit(lambda: [chains(x) for _ in range(25)]) for _ in range(4)]:
            for result in results.result(timeout=120):
                jax.tree.map(np.testing.assert_array_equal, result, expected)


def test_exports_refuse_the_native_call() -> None:
    _, packed = packed_case("Q8_0", 16, 64)
    multiply = jax.jit(lambda x: cpu_kernels.quantized_matmul(x, packed, "Q8_0", (16, 64)))
    with pytest.raises(ValueError, match="custom calls? .*realm_quantized_matmul|realm_quantized_matmul"):
        jax.export.export(multiply)(jax.ShapeDtypeStruct((1, 64), jnp.float32))
