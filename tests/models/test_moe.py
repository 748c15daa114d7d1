"""Mixtures of experts against a dense computation of every expert, on quantised weights, and what they cost."""

import dataclasses
from collections.abc import Callable

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from realm_jax.gguf import GGMLType
from realm_jax.nn import ExpertsConfig, MixtureOfExperts, Recorder, Residual, Taps, Weights
from realm_jax.ops.experts import ClampedSwiGLU, apply_expert
from realm_jax.quant import QTensor

CONFIG = ExpertsConfig(hidden_size=64, intermediate_size=96, num_experts=6, experts_per_token=2)
CLAMPED = dataclasses.replace(CONFIG, bias=True, activation=ClampedSwiGLU(alpha=1.702, limit=1.0))


def tensors(config: ExpertsConfig, kind: gguf.GGMLQuantizationType) -> dict[str, tuple[QTensor, np.ndarray]]:
    """Random weights of a block by name: as they are stored, and decoded by the gguf package."""
    rng = np.random.default_rng(0)
    hidden, inner, count = config.hidden_size, config.intermediate_size, config.num_experts
    shapes = {
        "ffn_gate_inp.weight": (count, hidden),
        "ffn_gate_exps.weight": (count, inner, hidden),
        "ffn_up_exps.weight": (count, inner, hidden),
        "ffn_down_exps.weight": (count, hidden, inner),
    }
    if config.bias:
        shapes |= {f"{name.removesuffix('.weight')}.bias": shape[:-1] for name, shape in shapes.items()}
    return {name: stored(rng.normal(size=shape) / np.sqrt(shape[-1]), name, kind) for name, shape in shapes.items()}


def stored(array: np.ndarray, name: str, kind: gguf.GGMLQuantizationType) -> tuple[QTensor, np.ndarray]:
    array = array.astype(np.float32)
    if not name.endswith("_exps.weight") or kind == gguf.GGMLQuantizationType.F32:
        return QTensor(jnp.asarray(array), GGMLType.F32), array
    blocks = gguf.quants.quantize(array, kind)
    size = gguf.GGML_QUANT_SIZES[kind][1]
    data = jnp.asarray(blocks.reshape(*array.shape[:-1], -1, size))
    return QTensor(data, GGMLType[kind.name]), gguf.quants.dequantize(blocks, kind)


def block(config: ExpertsConfig, kind: str) -> tuple[MixtureOfExperts, dict[str, np.ndarray]]:
    made = tensors(config, gguf.GGMLQuantizationType[kind])
    weights = Weights(load=lambda name: made[name][0] if name in made else None, taken=set())
    return MixtureOfExperts(weights, config), {name: array.astype(np.float64) for name, (_, array) in made.items()}


def apply(moe: MixtureOfExperts, x: jax.Array, tap: Recorder) -> jax.Array:
    """The block's output by itself, but for what adding it to the stream has rounded."""
    return moe(None, Residual(stream=x, post_norm=None, scale=1.0), tap) - x


def dense(x: np.ndarray, arrays: dict[str, np.ndarray], config: ExpertsConfig) -> np.ndarray:
    """Every expert for every token in float64, then the weighted sum over the chosen ones."""

    def linear(name: str, x: np.ndarray, expert: int | None = None) -> np.ndarray:
        part = ... if expert is None else expert
        y = x @ arrays[f"{name}.weight"][part].T
        return y + arrays[f"{name}.bias"][part] if config.bias else y

    logits = linear("ffn_gate_inp", x)
    chosen = np.argsort(-logits, axis=1)[:, : config.experts_per_token]
    rows = np.arange(len(x))[:, None]
    mask = np.zeros_like(logits, bool)
    mask[rows, chosen] = True
    exponentials = np.exp(logits)
    summed = np.where(mask, exponentials, 0) if config.normalise else exponentials
    weights = np.where(mask, exponentials, 0) / summed.sum(axis=1, keepdims=True) * config.weights_scale
    out = np.zeros_like(x)
    for expert in range(config.num_experts):
        gate, up = (linear(name, x, expert) for name in ("ffn_gate_exps", "ffn_up_exps"))
        if isinstance(config.activation, ClampedSwiGLU):
            limit = config.activation.limit
            gate, up = np.minimum(gate, limit), np.clip(up, -limit, limit)
            hidden = gate / (1 + np.exp(-config.activation.alpha * gate)) * (up + 1)
        else:
            hidden = gate / (1 + np.exp(-gate)) * up
        out += weights[:, expert, None] * linear("ffn_down_exps", hidden, expert)
    return out


def inputs(tokens: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(1).normal(size=(tokens, CONFIG.hidden_size)), jnp.float32)


@pytest.mark.parametrize("tokens", [1, 5])
@pytest.mark.parametrize(
    ("config", "kind"),
    [
        (CONFIG, "F32"),
        (CONFIG, "Q4_0"),
        (dataclasses.replace(CONFIG, normalise=False, weights_scale=2.5), "Q8_0"),
        (CLAMPED, "MXFP4"),
        (dataclasses.replace(CONFIG, experts_per_token=6), "F32"),
    ],
)
def test_it_equals_the_dense_computation(config: ExpertsConfig, kind: str, tokens: int) -> None:
    moe, arrays = block(config, kind)
    x = inputs(tokens)
    out = jax.jit(lambda x: apply(moe, x, Recorder(Taps())))(x)
    expected = dense(np.asarray(x, np.float64), arrays, config)
    # Sums of up to 96 products of numbers of order one in float32.
    np.testing.assert_allclose(out, expected, atol=1e-5, rtol=0)


def test_a_tokens_result_does_not_depend_on_its_neighbours() -> None:
    moe, _ = block(CONFIG, "Q4_0")
    x = inputs(4)
    together = apply(moe, x, Recorder(Taps()))
    for i in range(4):
        # Rows of a product may be summed in another order.
        np.testing.assert_allclose(together[i : i + 1], apply(moe, x[i : i + 1], Recorder(Taps())), atol=1e-6, rtol=0)


def test_routing_can_be_read_and_changed() -> None:
    moe, _ = block(CONFIG, "F32")
    x = inputs(3)
    tap = Recorder(Taps(capture=("mlp.router_*",)))
    apply(moe, x, tap)
    logits, weights = tap.captured["mlp.router_logits"], tap.captured["mlp.router_weights"]
    assert np.count_nonzero(weights, axis=1).tolist() == [2, 2, 2]
    np.testing.assert_allclose(np.sum(weights, axis=1), 1.0, rtol=1e-6)
    assert np.argmax(weights, axis=1).tolist() == np.argmax(logits, axis=1).tolist()

    first = Taps.of(edits={"mlp.router_weights": lambda w: jnp.zeros_like(w).at[:, 0].set(1.0)})
    expert, maps = jnp.int32(0), moe.experts
    hidden = jax.nn.silu(apply_expert(maps.gate, x, expert)) * apply_expert(maps.up, x, expert)
    alone = apply_expert(maps.down, hidden, expert)
    rounded = np.finfo(np.float32).eps * np.abs(x + alone).max()
    np.testing.assert_allclose(apply(moe, x, Recorder(first)), alone, rtol=1e-6, atol=rounded)


def test_equal_logits_go_to_the_first_experts() -> None:
    moe, _ = block(CONFIG, "F32")
    tap = Recorder(Taps.of("mlp.router_weights", {"mlp.router_logits": jnp.zeros_like}))
    apply(moe, inputs(1), tap)
    assert tap.captured["mlp.router_weights"].tolist() == [[0.5, 0.5, 0, 0, 0, 0]]


def test_the_gradient_reaches_inputs_and_router() -> None:
    moe, _ = block(CONFIG, "Q8_0")
    x = inputs(3)

    def loss(x: jax.Array) -> jax.Array:
        return jnp.sum(jnp.sin(apply(moe, x, Recorder(Taps()))))

    direction = jnp.asarray(np.random.default_rng(2).normal(size=x.shape).astype(np.float32))
    step = 1e-2
    # The error of a central difference is of order step^2, that of its float32 sums 1e-6 / step.
    slope = (loss(x + step * direction) - loss(x - step * direction)) / (2 * step)
    np.testing.assert_allclose(jnp.vdot(jax.grad(loss)(x), direction), slope, rtol=1e-2, atol=1e-3)


def compiled(config: ExpertsConfig, kind: str, tokens: int) -> Callable:
    moe, _ = block(config, kind)
    graphdef, state = nnx.split(moe)
    x = jnp.zeros((tokens, config.hidden_size))
    return jax.jit(lambda state, x: apply(nnx.merge(graphdef, state), x, Recorder(Taps()))).lower(state, x).compile()


@pytest.mark.parametrize("tokens", [1, 64])
def test_temporaries_do_not_grow_with_the_number_of_experts(tokens: int) -> None:
    wide = dataclasses.replace(CONFIG, hidden_size=256, intermediate_size=512)
    few, many = (
        compiled(dataclasses.replace(wide, num_experts=count), "Q8_0", tokens).memory_analysis().temp_size_in_bytes
        for count in (4, 16)
    )
    # One expert decoded takes 1.5 MB, all sixteen 25 MB. Routing itself is a few numbers for each expert.
    assert many <= few + tokens * 16 * 32
    assert many < 2.5 * 2**20


def test_more_experts_per_token_than_experts_are_refused() -> None:
    with pytest.raises(ValueError, match="experts_per_token must be 1 to 6, got 7"):
        dataclasses.replace(CONFIG, experts_per_token=7)
