"""Activations of many prompts on disk: equal to those in memory, and gone on with after an interruption."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from realm_jax import LLM
from realm_jax.shards import ActivationShards, write_shards

POINTS = ["layers.1.resid_post", "layers.0.attn.pattern"]
# Programs of other shapes group float32 sums differently.
ROUNDING = 1e-4


def prompts(count: int = 23) -> list[dict[str, list[int]]]:
    rng = np.random.default_rng(0)
    return [{"prompt_token_ids": rng.integers(128, size=rng.integers(1, 40)).tolist()} for _ in range(count)]


def test_shards_have_what_capture_returns(llama: LLM, tmp_path: Path) -> None:
    wanted = prompts()
    shards = llama.capture_to(tmp_path / "deep" / "shards", wanted, POINTS, shard_prompts=5, use_tqdm=False)
    assert shards.complete and len(shards) == 23 and len(shards.shards) == 5
    for number in (0, 4, 5, 22, -1):
        expected = llama.capture(wanted[number], POINTS)
        found = shards[number]
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(found[name][..., : value.shape[-1]], value[0], atol=ROUNDING)
            assert not found[name][..., value.shape[-1] :].any()
    assert sum(map(len, shards.arrays(POINTS[0]))) == sum(len(p["prompt_token_ids"]) for p in wanted)
    assert len(shards[3:6]) == 3 and isinstance(shards[0][POINTS[0]], np.memmap)
    with pytest.raises(IndexError, match=r"must lie in \[0, 23\), got 23"):
        shards[23]


def test_an_interrupted_run_goes_on(llama: LLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = llama.capture_to(tmp_path / "whole", prompts(), POINTS[0], positions="last", shard_prompts=4)
    computed = []

    def capture(numbers: range) -> list[dict[str, np.ndarray]]:
        if numbers.start == 8 and len(computed) == 2:
            (tmp_path / "cut" / f"{numbers.start:08d}.{POINTS[0]}.npy.part").write_bytes(b"torn")
            computed.append(None)
            raise KeyboardInterrupt
        computed.append(numbers)
        return [whole[i] for i in numbers]

    token_ids = [prompt["prompt_token_ids"] for prompt in prompts()]

    def run() -> ActivationShards:
        options = {"job": {"model": "m"}, "shard_prompts": 4, "progress": lambda _: None}
        return write_shards(tmp_path / "cut", token_ids, capture, **options)

    with pytest.raises(KeyboardInterrupt):
        run()
    cut = ActivationShards(tmp_path / "cut")
    assert not cut.complete and len(cut) == 8
    shards = run()
    assert shards.complete and [numbers.start for numbers in computed if numbers] == [0, 4, 8, 12, 16, 20]
    for one, other in zip(shards, whole, strict=True):
        np.testing.assert_array_equal(one[POINTS[0]], other[POINTS[0]])
    assert sorted(file.name for file in (tmp_path / "cut").iterdir() if file.suffix == ".part") == []
    assert run().complete and len(computed) == 7


def test_a_folder_of_another_job_is_refused(llama: LLM, tmp_path: Path) -> None:
    llama.capture_to(tmp_path, prompts(3), POINTS[0])
    before = (tmp_path / "index.json").read_bytes()
    for changed in ({"prompts": prompts(2)}, {"points": POINTS[1]}, {"positions": "last"}, {"shard_prompts": 2}):
        with pytest.raises(ValueError, match="has shards of another job"):
            llama.capture_to(tmp_path, **{"prompts": prompts(3), "points": POINTS[0], **changed})
    assert (tmp_path / "index.json").read_bytes() == before
    with pytest.raises(ValueError, match="shard_prompts must be at least 1"):
        llama.capture_to(tmp_path, prompts(3), POINTS[0], shard_prompts=0)


def test_narrow_floats_come_back_as_they_were(tmp_path: Path) -> None:
    value = np.arange(6).reshape(3, 2).astype(jnp.bfloat16)
    options = {"job": {}, "shard_prompts": 1, "progress": lambda _: None}
    shards = write_shards(tmp_path, [[1, 2, 3]], lambda _: [{"embed": value}], **options)
    assert shards[0]["embed"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(shards[0]["embed"].astype(np.float32), value.astype(np.float32))
    assert json.loads((tmp_path / "index.json").read_text())["shards"][0]["points"]["embed"]["dtype"] == "bfloat16"
