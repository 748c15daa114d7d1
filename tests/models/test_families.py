"""Every family against transformers on a recorded tiny model, and proof that each of its features is needed."""

from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np
import pytest
from ablations import UNRECORDED, Ablation, ablation, llama3_factors
from harness import (
    BLOCK_SIZE,
    BOUND,
    INDEX,
    MAX_MODEL_LEN,
    PagedRun,
    build_without,
    chunks,
    logits_in_chunks,
    recording,
    whole,
)

from realm_jax.engine.memory import CacheSize
from realm_jax.engine.runner import Runner
from realm_jax.engine.scoring import sequence_logits
from realm_jax.models import FAMILIES

NAMES = tuple(INDEX)
# One recording for each form of layer: the others differ from these in numbers alone.
FORMS = ("llama", "mixtral", "smollm3", "qwen3_yarn", "gemma2", "gemma3", "phi3_longrope", "olmo3", "gpt_oss_mxfp4")
# Losing one of these compiles the layers anew, a second for each form. The default run does so for these models.
COMPILED_WITHOUT = {
    "norm_eps": ("llama",),
    "window": ("gemma2", "gpt_oss"),
    "window_off_by_one": ("gemma2", "gemma3", "olmo3", "gpt_oss"),
    "qk_norm": ("gemma3", "olmo2", "qwen3"),
    "attention_soft_cap": ("gemma2",),
    "activation_clamp": ("gpt_oss",),
    "rope_style": ("llama", "qwen3"),
}


def slow_unless(quick: bool, *values: str | int) -> Any:
    """A parameter set of the default run, or of the slow one."""
    return pytest.param(*values, marks=() if quick else pytest.mark.slow)


def by_name(quick: Iterable[str]) -> list[Any]:
    """Every recording; all but `quick` are slow."""
    return [slow_unless(name in quick, name) for name in NAMES]


def by_feature(pairs: Iterable[tuple[str, str]]) -> list[Any]:
    """Recordings and a feature to lose."""
    return [slow_unless(name in COMPILED_WITHOUT.get(feature, NAMES), name, feature) for name, feature in pairs]


@pytest.fixture(scope="module", autouse=True)
def programs_are_dropped_at_the_end() -> Iterator[None]:
    """A hundred compiled layers are a gigabyte that later tests do not need."""
    yield
    jax.clear_caches()


def test_every_family_is_recorded() -> None:
    assert {model["architecture"] for model in INDEX.values()} == set(FAMILIES)


def error_in_chunks(name: str, prompt: str, size: int) -> float:
    recorded = recording(name, prompt)
    return recorded.error(logits_in_chunks(whole(name, prompt), recorded.ids, size))


@pytest.mark.parametrize("name", NAMES)
def test_a_whole_prompt_in_one_step(name: str) -> None:
    assert error_in_chunks(name, "long", MAX_MODEL_LEN) <= BOUND


@pytest.mark.parametrize("name", by_name(FORMS))
def test_a_short_prompt(name: str) -> None:
    assert error_in_chunks(name, "short", MAX_MODEL_LEN) <= BOUND


@pytest.mark.parametrize("name", by_name(FORMS))
def test_a_prompt_in_chunks(name: str) -> None:
    assert error_in_chunks(name, "long", 7) <= BOUND


@pytest.mark.parametrize("name", by_name(FORMS))
def test_a_prompt_token_by_token(name: str) -> None:
    assert error_in_chunks(name, "long", 1) <= BOUND


def check_compiled(name: str, *sizes: int) -> None:
    recorded = recording(name, "long")
    runner = Runner(
        whole(name, "long"),
        CacheSize(max_model_len=MAX_MODEL_LEN, num_blocks=(2,)),
        block_size=BLOCK_SIZE,
        kv_cache_dtype="float32",
    )
    for size in sizes:
        assert recorded.error(sequence_logits(runner, recorded.ids, chunk=size)) <= BOUND


@pytest.mark.parametrize("name", ["llama", "gemma3", "phi3_longrope", "gpt_oss_mxfp4"])
def test_the_compiled_step(name: str) -> None:
    check_compiled(name, MAX_MODEL_LEN)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_compiled_step_in_chunks(name: str) -> None:
    check_compiled(name, MAX_MODEL_LEN, 7, 1)


def loss_without(name: str, missing: Ablation) -> float:
    recorded = recording(name, missing.prompt)
    model = build_without(recorded, missing.change, missing.fill)
    return recorded.error(logits_in_chunks(model, recorded.ids, MAX_MODEL_LEN))


@pytest.mark.parametrize(
    ("name", "feature"), by_feature((name, feature) for name in NAMES for feature in INDEX[name]["effects"])
)
def test_a_lost_feature_shows(name: str, feature: str) -> None:
    loss = loss_without(name, ablation(name, feature))
    assert loss > 10 * BOUND
    # Transformers lost as much without the same feature. It is recorded to two digits: 5 % at most.
    assert loss == pytest.approx(INDEX[name]["effects"][feature], rel=0.06, abs=BOUND)


@pytest.mark.parametrize(("name", "feature"), by_feature(UNRECORDED))
def test_a_lost_feature_that_transformers_cannot_lose_shows(name: str, feature: str) -> None:
    assert loss_without(name, UNRECORDED[name, feature]) > 10 * BOUND


def test_the_converter_stores_the_factors_of_llama3() -> None:
    # The converter computes them in float32.
    np.testing.assert_allclose(recording("llama3", "long").config.rope.factors, llama3_factors(), rtol=1e-6)


@pytest.mark.parametrize("name", ["gemma3", "gpt_oss_mxfp4"])
def test_a_batch_equals_its_sequences_alone(name: str) -> None:
    """One sequence goes on where its chunks ended while another begins, in the same step."""
    long, short = recording(name, "long"), recording(name, "short")
    run = PagedRun(whole(name, "long"))
    *before, last = chunks(long.ids, 12)
    for part in before:
        run.step([part])
    (other,) = chunks(short.ids, 12, first_block=9)
    together = run.step([last, other])
    assert np.abs(together[:12] - long.logits[-12:]).max() <= BOUND * long.scale
    assert short.error(together[12:]) <= BOUND
    # Float32 sums in another order; no number of one sequence enters the other's.
    alone = PagedRun(whole(name, "long"))
    np.testing.assert_allclose(together[12:], alone.step([other]), atol=1e-5 * short.scale, rtol=0)
