"""Mixtures on the native kernels: the same layer as through XLA, its derivatives, and the choice between both."""

import dataclasses

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cpu_kernels
from realm_jax.gguf import GGMLType
from realm_jax.ops.experts import Experts, apply_expert, mix_experts, swiglu
from realm_jax.ops.split import LinearMap
from realm_jax.quant import QTensor
from realm_jax.quant.layouts import LAYOUTS

pytestmark = pytest.mark.skipif(not cpu_kernels.is_available(), reason="needs the native library")

HIDDEN, INNER, EXPERTS, MOST = 64, 96, 4, 2


def maps(rows: int, columns: int, seed: int) -> LinearMap:
    weights = np.random.default_rng(seed).normal(size=(EXPERTS, rows, columns)).astype(np.float32) / np.sqrt(columns)
    blocks = gguf.quants.quantize(weights, gguf.GGMLQuantizationType.Q8_0)
    data = LAYOUTS["cpu"].pack(blocks.reshape(-1), GGMLType.Q8_0, weights.shape, None)
    bias = jnp.asarray(np.random.default_rng(seed + 9).normal(size=(EXPERTS, rows)).astype(np.float32))
    return LinearMap(weight=QTensor(jnp.asarray(data), GGMLType.Q8_0, "cpu", (rows, columns)), bias=bias)


def layer() -> tuple[jax.Array, jax.Array, Experts]:
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(6, HIDDEN)).astype(np.float32))
    weights = np.zeros((6, EXPERTS), np.float32)
    for row in weights:
        row[rng.permutation(EXPERTS)[:MOST]] = rng.uniform(0.2, 1, size=MOST)
    experts = Experts(
        gate=maps(INNER, HIDDEN, 1), up=maps(INNER, HIDDEN, 2), down=maps(HIDDEN, INNER, 3), activation=swiglu
    )
    return x, jnp.asarray(weights), experts


def test_the_native_mixture_adds_up_native_experts() -> None:
    x, weights, experts = layer()
    out = jax.jit(lambda x, w: mix_experts(x, w, experts, most=MOST, implementation="cpu"))(x, weights)
    for token in range(len(x)):
        total = jnp.zeros((1, HIDDEN))
        for expert in np.flatnonzero(weights[token]):
            gate, up = (
                apply_expert(one, x[token : token + 1], jnp.int32(expert), "cpu") for one in (experts.gate, experts.up)
            )
            total += weights[token, expert] * apply_expert(experts.down, swiglu(gate, up), jnp.int32(expert), "cpu")
        # SiLU of XLA differs in its last bits, by which a code of the 8 bits between may round to its neighbour: half
        # of a 127th of the largest of 96 activations of order one, times a weight of a tenth, at a few of them.
        np.testing.assert_allclose(out[token], total[0], atol=2e-3, rtol=0)


def test_derivatives_are_those_through_xla() -> None:
    x, weights, experts = layer()

    def loss(x: jax.Array, weights: jax.Array, bias: jax.Array, implementation: str) -> jax.Array:
        own = dataclasses.replace(experts, down=dataclasses.replace(experts.down, bias=bias))
        out = mix_experts(x, weights, own, most=MOST, implementation=implementation)
        return jnp.vdot(out, jnp.sin(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape))

    native, xla = (
        jax.grad(loss, argnums=(0, 1, 2))(x, weights, experts.down.bias, implementation)
        for implementation in ("cpu", "xla")
    )
    for one, other in zip(native, xla, strict=True):
        assert np.any(other)
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)


def test_other_activations_go_through_xla() -> None:
    x, weights, experts = layer()
    squared = dataclasses.replace(experts, activation=lambda gate, up: jnp.square(gate) * up)
    with cpu_kernels.profile() as times:
        jax.block_until_ready(mix_experts(x, weights, squared, most=MOST, implementation="cpu"))
    assert times["mix_experts"].calls == 0 and times["quantized_matmul"].calls > 0
