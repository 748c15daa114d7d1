"""Reading activations: shapes, batches, long prompts, and what they must equal."""

from typing import Any

import jax
import numpy as np
import pytest
from conftest import TINY
from flax import nnx

from realm_jax import LLM
from realm_jax.activations import Activations
from realm_jax.nn import NO_TAPS, Recorder

# Programs of other shapes group float32 sums differently: a few units in the last place of activations up to 30.
ROUNDING = 1e-4


def prompt_of(length: int, seed: int = 0) -> dict[str, list[int]]:
    return {"prompt_token_ids": np.random.default_rng(seed).integers(0, 128, length).tolist()}


def unrolled(llm: LLM, prompt: dict[str, list[int]]) -> list[jax.Array]:
    """The residual stream before each layer and after the last, by calling the layers one by one."""
    graphdef, state = nnx.split(llm.model)

    @jax.jit
    def run(state: Any, batch: Any, cache: Any) -> list[jax.Array]:
        model = nnx.merge(graphdef, state)
        tables = [rope(batch.positions) for rope in model.ropes]
        stream = [model.embed(batch)]
        for layer, kv in zip(model.layers, cache, strict=True):
            paged = batch.paged(layer.config.group)
            stream.append(layer(stream[-1], kv, paged, tables[layer.config.rope], Recorder(NO_TAPS))[0])
        return stream

    return run(state, *llm.model_inputs(prompt["prompt_token_ids"]))


def test_a_batch_is_captured_as_each_prompt_alone(llama: LLM) -> None:
    prompts = [prompt_of(20), prompt_of(12), prompt_of(33)]
    points = ["embed", "*.1.resid_post", "layers.[01].attn.*", "layers.0.mlp.**", "final_norm", "logits"]
    together = llama.capture(prompts, points)
    assert together.lengths.tolist() == [20, 12, 33]
    assert together.token_ids == [prompt["prompt_token_ids"] for prompt in prompts]
    shapes = {name: value.shape for name, value in together.items()}
    assert shapes["layers.1.resid_post"] == (3, 33, 40)
    assert shapes["layers.1.attn.q"] == (3, 33, 4, 12) and shapes["layers.1.attn.k"] == (3, 33, 2, 12)
    assert shapes["layers.0.attn.pattern"] == (3, 33, 4, 33)
    assert shapes["layers.0.mlp.hidden"] == (3, 33, 56) and shapes["logits"] == (3, 33, 128)
    assert shapes.keys().isdisjoint(["layers.0.resid_post", "layers.0.resid_mid", "layers.1.mlp.hidden"])
    for i, length in ((1, 12), (2, 33)):
        alone = llama.capture(prompts[i], points)
        assert alone.keys() == together.keys()
        for name, value in alone.items():
            own = together[name][i, :length]
            own = own[..., :length] if name.endswith("attn.pattern") else own
            np.testing.assert_allclose(own, value[0], atol=ROUNDING, err_msg=name)
            assert not together[name][i, length:].any()


def test_positions_choose_rows_of_the_whole(llama: LLM) -> None:
    prompts = [prompt_of(5), prompt_of(12)]
    whole = llama.capture(prompts, "layers.1.*")["layers.1.resid_post"]
    last = llama.capture(prompts, "layers.1.*", positions="last")["layers.1.resid_post"]
    assert last.shape == (2, 40)
    np.testing.assert_allclose(last, whole[[0, 1], [4, 11]], atol=ROUNDING)
    some = llama.capture(prompts, "layers.1.*", positions=slice(1, 9, 2))
    assert some["layers.1.resid_post"].shape == (2, 4, 40) and some.lengths.tolist() == [2, 4]
    np.testing.assert_allclose(some["layers.1.resid_post"][1], whole[1, 1:9:2], atol=ROUNDING)
    np.testing.assert_allclose(some["layers.1.resid_post"][0, :2], whole[0, [1, 3]], atol=ROUNDING)


def test_a_prompt_of_several_chunks_is_captured_whole() -> None:
    llm = LLM(TINY / "llama.gguf", max_model_len=640, max_num_seqs=1, implementation="xla", quiet=True)
    prompt = prompt_of(600)
    expected = unrolled(llm, prompt)[-1]
    late = llm.capture(prompt, "layers.1.resid_post", positions=slice(500, None))["layers.1.resid_post"]
    assert late.shape == (1, 100, 40)
    np.testing.assert_allclose(late[0], expected[500:], atol=ROUNDING)
    early = llm.capture(prompt, "layers.1.resid_post", positions=slice(10))["layers.1.resid_post"]
    np.testing.assert_allclose(early[0], expected[:10], atol=ROUNDING)


# Two models whose patterns are captured: the quantised one, and one with windows of 16 positions on most layers. To
# show its patterns a model attends densely; without, it reads its cache block by block.
@pytest.fixture(scope="module", params=["llm", "gemma3"])
def captured(request: pytest.FixtureRequest) -> tuple[LLM, dict[str, list[int]], Activations]:
    model: LLM = request.getfixturevalue(request.param)
    prompt = prompt_of(33)
    return model, prompt, model.capture(prompt, ["embed", "layers.**", "logits"])


def test_what_is_captured_equals_the_layers_called_one_by_one(
    captured: tuple[LLM, dict[str, list[int]], Activations],
) -> None:
    llm, prompt, values = captured
    stream = unrolled(llm, prompt)
    np.testing.assert_allclose(values["embed"][0], stream[0], atol=ROUNDING)
    for i, (before, after) in enumerate(zip(stream[:-1], stream[1:], strict=True)):
        np.testing.assert_allclose(values[f"layers.{i}.resid_pre"][0], before, atol=ROUNDING)
        np.testing.assert_allclose(values[f"layers.{i}.resid_post"][0], after, atol=ROUNDING)


def test_paged_attention_gives_the_logits_of_dense_patterns(
    captured: tuple[LLM, dict[str, list[int]], Activations],
) -> None:
    llm, prompt, values = captured
    np.testing.assert_allclose(values["logits"][0], llm.logits(prompt["prompt_token_ids"]), atol=ROUNDING)


def test_attention_patterns_are_causal_windows_that_sum_to_one(
    captured: tuple[LLM, dict[str, list[int]], Activations],
) -> None:
    llm, _, values = captured
    query, key = np.indices((33, 33))
    for i, layer in enumerate(llm.model.layers):
        pattern = values[f"layers.{i}.attn.pattern"][0]
        np.testing.assert_allclose(pattern.sum(-1), 1, atol=1e-6)  # 33 float32 terms
        visible = (key <= query) & (key > query - (layer.config.attention.window or 33))
        assert not pattern.transpose(1, 0, 2)[:, ~visible].any()
        read = np.einsum("qhk,khd->qhd", pattern, values[f"layers.{i}.attn.v"][0].repeat(2, axis=1))
        np.testing.assert_allclose(values[f"layers.{i}.attn.heads"][0], read, atol=ROUNDING)


def test_experts_show_their_routing() -> None:
    llm = LLM(TINY / "mixtral.gguf", max_model_len=64, max_num_seqs=1, quiet=True)
    values = llm.capture(prompt_of(12), ["layers.*.mlp.router_*"])
    logits, weights = values["layers.0.mlp.router_logits"][0], values["layers.0.mlp.router_weights"][0]
    assert logits.shape == weights.shape == (12, 5)
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-6)  # 2 float32 terms
    np.testing.assert_array_equal(weights.argmax(-1), logits.argmax(-1))
    assert ((weights > 0).sum(-1) == 2).all()


def test_many_short_prompts_are_captured_in_order(llama: LLM) -> None:
    values = llama.capture([{"prompt_token_ids": [i]} for i in range(70)], "embed")["embed"]
    np.testing.assert_array_equal(values[:, 0], llama.model.embed(llama.model_inputs(list(range(70)))[0]))
