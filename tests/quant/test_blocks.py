"""Every block type decodes to the bits that ggml's own decoding gives, compiled or not, whatever the leading axes."""

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from block_cases import BLOCK_TYPES, adversarial_blocks, random_blocks, reference

import realm_jax.gguf
from realm_jax.gguf import GGMLType
from realm_jax.quant import decode_blocks

compiled = jax.jit(decode_blocks, static_argnums=0)


def by_name(ggml_type: GGMLType) -> str:
    return ggml_type.name


every_type = pytest.mark.parametrize("ggml_type", BLOCK_TYPES, ids=by_name)


def assert_bit_equal(ggml_type: GGMLType, blocks: np.ndarray, got: jax.Array, want: np.ndarray | None = None) -> None:
    """Bits equal, signs of zeros included; any NaN for a NaN; zero allowed where the float32 scale is subnormal."""
    want = reference(ggml_type, blocks) if want is None else want
    assert got.dtype == jnp.float32
    assert got.shape == want.shape
    values = np.asarray(got)
    equal = (values.view(np.uint32) == want.view(np.uint32)) | (np.isnan(values) & np.isnan(want))
    flushed = subnormal_scale(ggml_type, blocks)[:, None] & (values == 0)
    np.testing.assert_array_equal(equal | flushed, True)


def subnormal_scale(ggml_type: GGMLType, blocks: np.ndarray) -> np.ndarray:
    """Blocks whose scale is a subnormal float32, which XLA flushes to zero: the one exception to equal bits.

    Only these can hold such a scale: MXFP4 with exponent byte 0 or 1, and Q8_K, whose scale is itself a
    float32.
    """
    if ggml_type is GGMLType.MXFP4:
        return blocks[:, 0] < 2
    if ggml_type is GGMLType.Q8_K:
        return (blocks[:, 3] & 0x7F == 0) & (blocks[:, 2] & 0x80 == 0)
    return np.zeros(len(blocks), bool)


@every_type
def test_random_blocks(ggml_type: GGMLType) -> None:
    blocks = random_blocks(ggml_type, 2000)
    assert_bit_equal(ggml_type, blocks, compiled(ggml_type, blocks))


@every_type
def test_adversarial_blocks(ggml_type: GGMLType) -> None:
    blocks = adversarial_blocks(ggml_type)
    assert_bit_equal(ggml_type, blocks, compiled(ggml_type, blocks))


@pytest.mark.parametrize("ggml_type", [GGMLType.Q4_0, GGMLType.Q6_K, GGMLType.IQ3_S], ids=by_name)
def test_without_jit(ggml_type: GGMLType) -> None:
    blocks = random_blocks(ggml_type, 6)
    assert_bit_equal(ggml_type, blocks, decode_blocks(ggml_type, jnp.asarray(blocks)))


@every_type
def test_leading_axes_and_vmap(ggml_type: GGMLType) -> None:
    blocks = random_blocks(ggml_type, 24)

    @jax.jit
    def shaped(flat: jax.Array) -> tuple[jax.Array, ...]:
        def decode(part: jax.Array) -> jax.Array:
            return decode_blocks(ggml_type, part)

        rows = flat.reshape(2, 3, 4, -1)
        return (
            decode(rows),
            jax.vmap(decode, in_axes=1)(rows),
            jax.vmap(decode)(flat),
            decode(flat[0]),
            decode(flat[:0]),
        )

    four, mapped, one_by_one, single, none = shaped(blocks)
    assert four.shape == (2, 3, 4, ggml_type.block_size)
    assert_bit_equal(ggml_type, blocks, four.reshape(24, -1))
    assert_bit_equal(ggml_type, blocks, jnp.swapaxes(mapped, 0, 1).reshape(24, -1))
    assert_bit_equal(ggml_type, blocks, one_by_one)
    assert_bit_equal(ggml_type, blocks[:1], single[None])
    assert none.shape == (0, ggml_type.block_size)


@every_type
def test_fused_with_its_consumer(ggml_type: GGMLType) -> None:
    """XLA fuses the decoding into what uses it, here a reversal and a change of sign, both exact."""
    blocks = random_blocks(ggml_type, 16)
    got = jax.jit(lambda b: -decode_blocks(ggml_type, b)[:, ::-1])(blocks)
    assert_bit_equal(ggml_type, blocks, got, -reference(ggml_type, blocks)[:, ::-1])


@pytest.mark.parametrize("model", ["smollm2_path", "gemma3_path"])
def test_tensors_of_real_models(model: str, request: pytest.FixtureRequest) -> None:
    with realm_jax.gguf.open(request.getfixturevalue(model)) as file:
        one_of_each = {tensor.ggml_type: tensor for tensor in file.tensors.values() if tensor.ggml_type in BLOCK_TYPES}
        assert len(one_of_each) >= 2
        for ggml_type, tensor in one_of_each.items():
            blocks = np.array(tensor.data[: 500 * ggml_type.type_size].reshape(-1, ggml_type.type_size))
            assert_bit_equal(ggml_type, blocks, compiled(ggml_type, blocks))


@pytest.mark.parametrize("ggml_type", [GGMLType.F32, GGMLType.BF16, GGMLType.I32], ids=by_name)
def test_a_type_without_blocks_is_named(ggml_type: GGMLType) -> None:
    with pytest.raises(ValueError, match=f"Q4_0.*got {ggml_type.name}"):
        decode_blocks(ggml_type, jnp.zeros((2, ggml_type.type_size), jnp.uint8))


def test_an_axis_that_is_not_a_block_is_named() -> None:
    with pytest.raises(ValueError, match=r"144 bytes of a Q4_K block, got \(3, 143\)"):
        decode_blocks(GGMLType.Q4_K, jnp.zeros((3, 143), jnp.uint8))


# Root mean square of the rounding error over that of standard normal weights. A type of step s = range / levels rounds
# with error s / sqrt(12). The expected greatest of 32 normal magnitudes is 2.27, which gives 2.27 / 8 / sqrt(12) =
# 0.082 for Q4_0 and a sixteenth of it for Q8_0; the range of 32 is 4.14, which gives 4.14 / 15 / sqrt(12) = 0.080 for
# Q4_1. The bounds leave a tenth for the spread of the greatest value. The ternary types keep only the values near the
# greatest of 256 and MXFP4 only 8 magnitudes: theirs are the measured errors and a tenth.
@pytest.mark.parametrize(
    ("ggml_type", "bound"),
    [
        (GGMLType.Q4_0, 0.090),
        (GGMLType.Q4_1, 0.088),
        (GGMLType.Q5_0, 0.045),
        (GGMLType.Q5_1, 0.043),
        (GGMLType.Q8_0, 0.0057),
        (GGMLType.TQ1_0, 0.885),
        (GGMLType.TQ2_0, 0.885),
        (GGMLType.MXFP4, 0.127),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_what_the_package_quantises_comes_back(ggml_type: GGMLType, bound: float) -> None:
    weights = np.random.default_rng(0).standard_normal((64, 1024), np.float32)
    data = gguf.quants.quantize(weights, gguf.GGMLQuantizationType(ggml_type))
    blocks = jnp.asarray(data.reshape(64, -1, ggml_type.type_size))
    got = np.asarray(compiled(ggml_type, blocks)).reshape(weights.shape)
    error = np.sqrt(np.mean((got - weights) ** 2) / np.mean(weights**2))
    assert error <= bound
