"""Replacing activations: ablation, steering, patching, and that unused points cost nothing."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from realm_jax import LLM, SamplingParams
from realm_jax.models import causal_lm
from realm_jax.nn import Recorder

IDS = list(range(20, 29))


def test_an_edit_that_does_nothing_changes_no_bit(llm: LLM) -> None:
    edited = llm.logits(IDS, edits={"layers.*.attn.out": lambda x: x, "final_norm": lambda x: x})
    np.testing.assert_array_equal(edited, llm.logits(IDS))


def test_without_its_branches_a_model_only_embeds(llm: LLM) -> None:
    ablation = {"layers.*.attn.out": jnp.zeros_like, "layers.*.mlp.out": jnp.zeros_like}
    captured = llm.capture({"prompt_token_ids": IDS}, ["embed", "layers.1.resid_post"], edits=ablation)
    np.testing.assert_array_equal(captured["layers.1.resid_post"], captured["embed"])
    assert np.abs(llm.logits(IDS, edits=ablation) - llm.logits(IDS)).max() > 1


def test_patching_the_last_layer_moves_one_run_onto_another(llm: LLM) -> None:
    others = IDS[::-1]
    target = llm.capture({"prompt_token_ids": others}, "layers.1.resid_post")["layers.1.resid_post"][0]
    patch = {"layers.1.resid_post": lambda x: x.at[: len(IDS)].set(target)}
    patched = llm.logits(IDS, edits=patch)
    np.testing.assert_array_equal(patched, llm.logits(others, edits=patch))
    # The head is compiled with a constant before it, so float32 sums of logits up to 30 may be grouped differently.
    np.testing.assert_allclose(patched, llm.logits(others), atol=1e-4)
    assert np.abs(patched - llm.logits(IDS)).max() > 1


def test_generation_follows_the_logits_under_the_same_edit(llm: LLM) -> None:
    direction = jnp.asarray(np.random.default_rng(0).normal(size=64) * 4, jnp.float32)
    steering = {"layers.0.resid_post": lambda x: x + direction[None]}
    params = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True, prompt_logprobs=0)
    (steered,) = llm.generate({"prompt_token_ids": IDS}, params, use_tqdm=False, edits=steering)
    tokens = steered.outputs[0].token_ids
    written = slice(len(IDS) - 1, None)
    logits = llm.logits(IDS + tokens[:-1], edits=steering)
    assert logits[written].argmax(-1).tolist() == tokens
    assert llm.logits(IDS + tokens[:-1])[written].argmax(-1).tolist() != tokens
    assert steered.prompt_logprobs is not None
    expected = jax.nn.log_softmax(logits, axis=-1)
    for i, (token, table) in enumerate(zip(IDS[1:], steered.prompt_logprobs[1:], strict=True)):
        assert table is not None
        # Two programs, as above.
        assert table[token].logprob == pytest.approx(float(expected[i, token]), abs=1e-4)


def test_each_request_of_a_batch_has_its_own_edits(native: LLM) -> None:
    """More requests than run together, some sharing functions, one without any: alone or together, the same bits."""
    rng = np.random.default_rng(1)
    up, down = (jnp.asarray(rng.normal(size=64) * 4, jnp.float32) for _ in range(2))
    first = {"layers.0.resid_post": lambda x: x + up[None], "logits": lambda x: -x}
    second = {"layers.*.resid_mid": lambda x: x + down[None]}
    edits = [first, None, second, first, {"embed": jnp.zeros_like}]
    prompts = [{"prompt_token_ids": IDS}] * 4 + [{"prompt_token_ids": IDS[:5]}]
    params = SamplingParams(temperature=0, max_tokens=7, ignore_eos=True, prompt_logprobs=0, logprobs=2)
    together = native.generate(prompts, params, use_tqdm=False, edits=edits)
    for prompt, edit, output in zip(prompts, edits, together, strict=True):
        (alone,) = native.generate(prompt, params, use_tqdm=False, edits=edit)
        assert output.prompt_logprobs == alone.prompt_logprobs
        assert output.outputs[0].logprobs == alone.outputs[0].logprobs
    written = [tuple(output.outputs[0].token_ids) for output in together]
    assert written[0] == written[3] and len({*written[:3]}) == 3


Edits = list[dict[str, Callable[[jax.Array], jax.Array]] | None]
ALL_POINTS: Edits = [
    {
        "layers.0.attn.v": jnp.negative,
        "layers.0.mlp.hidden": jnp.zeros_like,
        "layers.1.attn.pattern": jnp.zeros_like,
        "final_norm": lambda x: x / 2,
        "logits": lambda x: x / 3,
    },
    None,
]
OTHER_POINTS: Edits = [
    {"layers.1.attn.pattern": jnp.zeros_like, "final_norm": lambda x: x / 2},
    None,
    {"layers.0.mlp.hidden": jnp.zeros_like, "layers.1.attn.v": jnp.negative, "logits": lambda x: x / 3},
]


@pytest.mark.parametrize("edits", [ALL_POINTS, pytest.param(OTHER_POINTS, marks=pytest.mark.slow)])
def test_own_edits_reach_points_within_a_layer_and_at_the_head(llm: LLM, edits: Edits) -> None:
    params = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True, logprobs=2)
    prompt = {"prompt_token_ids": IDS}
    together = llm.generate([prompt] * len(edits), params, use_tqdm=False, edits=edits)
    assert together[0].outputs[0].logprobs != together[1].outputs[0].logprobs
    for edit, output in zip(edits, together, strict=True):
        (alone,) = llm.generate(prompt, params, use_tqdm=False, edits=edit)
        assert output.outputs[0].token_ids == alone.outputs[0].token_ids
        for own, other in zip(output.outputs[0].logprobs or (), alone.outputs[0].logprobs or (), strict=True):
            # Two programs, as above.
            assert {i: p.logprob for i, p in own.items()} == pytest.approx(
                {i: p.logprob for i, p in other.items()}, abs=1e-4
            )


def test_edits_of_one_request_leave_no_trace_in_the_prefixes_of_others(native: LLM) -> None:
    prompt = {"prompt_token_ids": [*range(40, 80)]}  # more than two blocks
    params = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True, logprobs=0)
    edits = [{"embed": jnp.zeros_like}, None, {"layers.1.resid_pre": jnp.negative}]
    engine = LLM(native.path, max_model_len=112, max_num_seqs=1, block_size=16, implementation="cpu", quiet=True)
    turns = engine.generate([prompt] * 3, params, use_tqdm=False, edits=edits)
    for edit, output in zip(edits, turns, strict=True):
        (alone,) = native.generate(prompt, params, use_tqdm=False, edits=edit)
        assert output.outputs[0].logprobs == alone.outputs[0].logprobs


def test_edits_for_each_request_must_be_as_many_as_requests(llm: LLM) -> None:
    with pytest.raises(ValueError, match="edits must be one for all prompts or one for each of 2, got 1"):
        llm.generate(["a", "b"], use_tqdm=False, edits=[None])
    with pytest.raises(ValueError, match=r"no activation point matches 'layers\.9\.mlp\.out'"):
        llm.generate(["a", "b"], use_tqdm=False, edits=[None, {"layers.9.mlp.out": jnp.zeros_like}])


def test_a_replaced_pattern_is_what_the_heads_read(llama: LLM) -> None:
    def itself(pattern: jax.Array) -> jax.Array:
        tokens, _, context = pattern.shape
        return jnp.broadcast_to(jnp.eye(tokens, context)[:, None], pattern.shape)

    captured = llama.capture(
        {"prompt_token_ids": IDS}, ["layers.0.attn.v", "layers.0.attn.heads"], edits={"layers.0.attn.pattern": itself}
    )
    # Multiplying by one and adding zeros is exact.
    np.testing.assert_array_equal(captured["layers.0.attn.heads"], captured["layers.0.attn.v"].repeat(2, axis=2))


def test_edits_of_one_point_apply_in_order_and_are_captured(llama: LLM) -> None:
    edits: dict[str, Callable[[jax.Array], jax.Array]] = {"logits": lambda x: x * 0 + 3, "log*": lambda x: x * 2}
    captured = llama.capture({"prompt_token_ids": IDS}, "logits", edits=edits, positions="last")
    np.testing.assert_array_equal(captured["logits"], np.full((1, 128), 6, np.float32))


def test_unused_points_cost_nothing(llama: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    batch, cache = llama.model_inputs(IDS)

    def lowered(change: Callable[[jax.Array], jax.Array]) -> str:
        """The program of a model whose points are nothing but `change`."""
        causal_lm._layer_step.clear_cache()  # else the layers would keep the points they were traced with
        monkeypatch.setattr(Recorder, "__call__", lambda self, name, value: change(value))
        return jax.jit(lambda: llama.model(batch, cache).logits).lower().as_text()

    without = lowered(lambda value: value)
    with_other_points = lowered(lambda value: -value)
    monkeypatch.undo()
    causal_lm._layer_step.clear_cache()
    with_points = jax.jit(lambda: llama.model(batch, cache).logits).lower().as_text()
    assert with_points == without != with_other_points
