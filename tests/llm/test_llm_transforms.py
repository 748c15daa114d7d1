"""The model as a pure function of its state: jit, vmap, grad and placement, with weights that stay quantised."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from realm_jax import LLM, gguf
from realm_jax.nn import NO_TAPS, Taps
from realm_jax.quant import QTensor, dequantize

IDS = [104, 101, 108, 108, 111]
Loss = Callable[..., jax.Array]


@pytest.fixture(scope="module")
def loss(llm: LLM) -> Loss:
    """The mean surprise of IDS, as a function of the model's state, its input embeddings and its taps."""
    graphdef, _ = nnx.split(llm.model)
    batch, cache = llm.model_inputs(IDS)
    targets = jnp.asarray(IDS[1:])

    def surprise(state: Any, embeds: jax.Array, taps: Taps = NO_TAPS) -> jax.Array:
        inputs = dataclasses.replace(batch, input_embeds=embeds)
        logits = nnx.merge(graphdef, state)(inputs, cache, taps).logits
        logprobs = jax.nn.log_softmax(logits[:-1], axis=-1)
        return -jnp.take_along_axis(logprobs, targets[:, None], axis=-1).mean()

    return surprise


@pytest.fixture(scope="module")
def state(llm: LLM) -> Any:
    return nnx.state(llm.model)


@pytest.fixture(scope="module")
def embeds(llm: LLM) -> jax.Array:
    return llm.model.embed(llm.model_inputs(IDS)[0])


@pytest.fixture(scope="module")
def gradient(loss: Loss, state: Any, embeds: jax.Array) -> jax.Array:
    return jax.jit(jax.grad(loss, argnums=1))(state, embeds)


def in_float32(state: Any) -> Any:
    """The same weights, decoded."""

    def decoded(leaf: Any) -> Any:
        return QTensor(dequantize(leaf), gguf.GGMLType.F32) if isinstance(leaf, QTensor) else leaf

    return jax.tree.map(decoded, state, is_leaf=lambda leaf: isinstance(leaf, QTensor))


def test_the_split_model_computes_what_llm_does(llm: LLM, loss: Loss, state: Any, embeds: jax.Array) -> None:
    expected = -jax.nn.log_softmax(llm.logits(IDS), axis=-1)[np.arange(4), IDS[1:]].mean()
    placed = jax.device_put(state, jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    assert float(jax.jit(loss)(placed, embeds)) == pytest.approx(float(expected), rel=1e-5)  # float32 of another shape


def test_the_gradient_is_that_of_the_decoded_weights(
    loss: Loss, state: Any, embeds: jax.Array, gradient: jax.Array
) -> None:
    dense = jax.jit(jax.grad(loss, argnums=1))(in_float32(state), embeds)
    assert float(jnp.abs(dense).max()) > 1e-2
    # The same float32 sums, fused differently.
    np.testing.assert_allclose(gradient, dense, atol=1e-5)


def test_the_gradient_predicts_a_small_step(loss: Loss, state: Any, embeds: jax.Array, gradient: jax.Array) -> None:
    step = 1e-2 * gradient / jnp.linalg.norm(gradient)
    value = jax.jit(loss)
    change = value(state, embeds + step) - value(state, embeds - step)
    # What is left is of third order in the step, and the rounding of a loss of about 10.
    assert float(change) == pytest.approx(2e-2 * float(jnp.linalg.norm(gradient)), rel=0.02)


def test_the_gradient_of_an_activation_is_that_of_what_is_added_to_it(
    loss: Loss, state: Any, embeds: jax.Array, gradient: jax.Array
) -> None:
    def moved(deltas: dict[str, jax.Array]) -> jax.Array:
        edits = {name: lambda x, delta=delta: x + delta for name, delta in deltas.items()}
        return loss(state, embeds, Taps.of(edits=edits))

    names = ("embed", "layers.0.resid_pre", "layers.1.resid_post")
    gradients = jax.jit(jax.grad(moved))({name: jnp.zeros_like(embeds) for name in names})
    # Nothing lies between the embeddings and the first layer; the last residual reaches each position's logits alone.
    np.testing.assert_array_equal(gradients["embed"], gradients["layers.0.resid_pre"])
    np.testing.assert_allclose(gradients["embed"], gradient, atol=1e-6)
    assert jnp.abs(gradients["layers.1.resid_post"][:-1]).min(axis=1).all()
    assert not gradients["layers.1.resid_post"][-1].any()


def test_vmap_runs_many_embeddings_at_once(loss: Loss, state: Any, embeds: jax.Array) -> None:
    many = jnp.stack([embeds, embeds * 0.5, -embeds])
    together = jax.jit(jax.vmap(loss, in_axes=(None, 0)))(state, many)
    value = jax.jit(loss)
    # Batched and single matrix products group their float32 sums differently.
    np.testing.assert_allclose(together, [value(state, one) for one in many], rtol=1e-5)


def test_norms_have_gradients_and_quantised_weights_none(llm: LLM) -> None:
    graphdef, norms, frozen = nnx.split(llm.model, nnx.Param, ...)
    batch, cache = llm.model_inputs(IDS)

    def total(norms: Any, frozen: Any) -> jax.Array:
        return nnx.merge(graphdef, norms, frozen)(batch, cache).logits.sum()

    gradients = jax.tree.leaves(jax.jit(jax.grad(total))(norms, frozen))
    assert len(gradients) == 2 * len(llm.model.layers) + 1
    assert all(gradient.ndim == 1 and gradient.any() for gradient in gradients)


@pytest.mark.parametrize("fixture", ["smollm2_path", "gemma3_path"])
def test_loaded_weights_are_the_file_s_bytes_and_no_float_copies(fixture: str, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(fixture)
    llm = LLM(path, max_model_len=64, max_num_seqs=1, quiet=True)
    leaves = jax.tree.leaves(nnx.state(llm.model))
    stored = sum(raw.nbytes for raw in gguf.open(path).tensors.values())
    assert sum(leaf.nbytes for leaf in leaves) <= 1.10 * stored
    assert {leaf.dtype.name for leaf in leaves if leaf.ndim > 1} == {"uint8"}
    # What runs is what is held.
    assert [id(leaf) for leaf in llm.runner.leaves] == [id(leaf) for leaf in leaves]
