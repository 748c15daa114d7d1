"""A whole mixture of experts through the interpreted Pallas kernels, against every expert's products in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matmul_inputs import FLOAT32, blocks_of, decoded, product

from pallas_kernels.case import Backend
from realm_jax.gguf import GGMLType, RawTensor
from realm_jax.ops.experts import Experts, mix_experts, swiglu
from realm_jax.ops.split import LinearMap
from realm_jax.quant import from_raw

KIND, COUNT, HIDDEN, INNER = "Q4_0", 4, 64, 32
# Of five tokens the first goes to one expert, the last to none, and nobody to the third expert.
ROUTER = np.asarray([[0, 0, 0, 1], [0.5, 0, 0, 0.25], [0.5, -2, 0, 1], [0.125, 1, 0, 0], [0, 0, 0, 0]], np.float32)


def matrices(rows: int, columns: int) -> np.ndarray:
    """Blocks of each expert's matrix."""
    return blocks_of(KIND, COUNT * rows, columns).reshape(COUNT, rows, -1)


def linear_map(blocks: np.ndarray, columns: int, layout: str) -> LinearMap:
    raw = RawTensor("experts", GGMLType[KIND], (*blocks.shape[:2], columns), np.ascontiguousarray(blocks).reshape(-1))
    return LinearMap(weight=from_raw(raw, layout=layout))


def expected(x: jax.Array, backend: Backend, gates: np.ndarray, ups: np.ndarray, downs: np.ndarray) -> np.ndarray:
    """Each expert's output, `[tokens, experts, hidden]`, and the bound of its error."""
    pairs = []
    for gate_blocks, up_blocks, down_blocks in zip(gates, ups, downs, strict=True):
        gate, gate_off = product(KIND, backend, x, gate_blocks)
        up, up_off = product(KIND, backend, x, up_blocks)
        silu = gate / (1 + np.exp(-gate))
        hidden = silu * up
        # The slope of silu is 1.1 at most; exponential, quotient and products are rounded a few times.
        off = 1.1 * gate_off * (np.abs(up) + up_off) + np.abs(silu) * up_off + 8 * FLOAT32 * np.abs(hidden)
        _, down_off = product(KIND, backend, jnp.asarray(np.abs(hidden) + off, jnp.float32), down_blocks)
        weights = decoded(KIND, down_blocks)
        pairs.append(np.stack([hidden @ weights.T, down_off + off @ np.abs(weights).T]))
    return np.stack(pairs, axis=2)


@pytest.mark.parametrize("backend", [pytest.param("triton", marks=pytest.mark.slow), "tpu"])
def test_a_mixture_and_its_derivative_by_the_router_lie_within_the_bound(backend: Backend) -> None:
    blocks = matrices(INNER, HIDDEN), matrices(INNER, HIDDEN)[::-1], matrices(HIDDEN, INNER)
    gate, up = (linear_map(one, HIDDEN, backend) for one in blocks[:2])
    experts = Experts(gate=gate, up=up, down=linear_map(blocks[2], INNER, backend), activation=swiglu)
    rng = np.random.default_rng(3)
    x = jnp.asarray(rng.normal(size=(len(ROUTER), HIDDEN)) / 8, jnp.float32)

    def mix(router: jax.Array) -> jax.Array:
        return mix_experts(x, router, experts, most=3, implementation=f"{backend}_interpreted")

    out, pull = jax.vjp(mix, jnp.asarray(ROUTER))
    outputs, off = expected(x, backend, *blocks)
    # One rounding of each product with a weight, and of each addition.
    sizes = np.einsum("te,teh->th", np.abs(ROUTER), np.abs(outputs))
    bound = np.einsum("te,teh->th", np.abs(ROUTER), off) + 2 * COUNT * FLOAT32 * sizes
    exact = np.einsum("te,teh->th", ROUTER, outputs)
    np.testing.assert_array_less(np.abs(np.asarray(out, np.float64) - exact), bound + 1e-30)
    assert not out[-1].any()

    seed = rng.normal(size=out.shape).astype(np.float32)
    slope = np.asarray(pull(jnp.asarray(seed))[0], np.float64)
    sizes = np.einsum("th,teh->te", np.abs(seed), np.abs(outputs))
    bound = np.einsum("th,teh->te", np.abs(seed), off) + (HIDDEN + 2) * FLOAT32 * sizes
    exact = np.where(ROUTER != 0, np.einsum("th,teh->te", seed, outputs), 0)
    np.testing.assert_array_less(np.abs(slope - exact), bound + 1e-30)
    assert not slope[ROUTER == 0].any()
