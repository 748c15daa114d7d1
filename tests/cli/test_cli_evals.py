"""Owns the tests of `realm perplexity` and `realm batch`, and of what `realm eval` says without the harness."""

import importlib.util
import json
import math
from pathlib import Path

import pytest
from conftest import Realm

from realm_jax import LLM

TEXT = "hi there, this is a text. " * 20


@pytest.fixture
def perplexity(realm: Realm, tiny: str) -> Realm:
    """Run `realm perplexity` on the tiny model in float32."""

    def run(*words: str, stdin: bytes = b"") -> object:
        return realm("perplexity", tiny, *words, "--implementation", "xla", stdin=stdin)

    return run


def test_perplexity_is_the_librarys(perplexity: Realm, tiny: str, tmp_path: Path) -> None:
    (tmp_path / "text").write_text(TEXT)
    found = perplexity(str(tmp_path / "text"), "--stride", "50", "--max-length", "100", "--json").json
    expected = LLM(tiny, implementation="xla", quiet=True).perplexity(TEXT, stride=50, max_length=100)
    assert found["perplexity"] == pytest.approx(expected.perplexity, rel=1e-5)
    assert found["num_tokens"] == expected.num_tokens
    assert found["bits_per_byte"] == pytest.approx(-expected.logprob / len(TEXT) / math.log(2), rel=1e-5)
    plain = perplexity("-", "--stride", "50", "--max-length", "100", stdin=TEXT.encode())
    assert plain.code == 0 and float(plain.out) == pytest.approx(expected.perplexity, abs=1e-2)


def test_perplexity_refuses_what_has_none(perplexity: Realm, tmp_path: Path) -> None:
    perplexity("-", stdin=b"x").assert_refused("needs a text of at least 2 tokens, got 1")
    perplexity(str(tmp_path / "absent")).assert_refused("No such file or directory")
    perplexity("-", "--max-length", "300", stdin=b"xyz").assert_refused("max_length must be at most max_model_len")


def test_batch_answers_a_file_and_goes_on_with_it(realm: Realm, tiny: str, tmp_path: Path) -> None:
    body = {"prompt": "hi", "max_tokens": 3, "ignore_eos": True}
    request = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": body}
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(json.dumps(request) + "\nbroken\n")
    words = ("batch", str(source), str(target), "--model", tiny, "--json")
    assert realm(*words).json == {"answered": 1, "failed": 1, "before": 0}
    source.write_text(source.read_text() + json.dumps({**request, "custom_id": "b"}) + "\n")
    assert realm(*words).json == {"answered": 1, "failed": 0, "before": 2}
    answers = [json.loads(line) for line in target.read_text().splitlines()]
    assert sorted(str(answer["custom_id"]) for answer in answers) == ["None", "a", "b"]
    again = realm(*words[:-1])
    assert (again.code, again.out) == (0, "")
    assert "0 answered, 0 failed, 3 had been answered before" in again.err


def test_batch_needs_a_file_of_requests(realm: Realm, tiny: str, tmp_path: Path) -> None:
    assert realm("batch", str(tmp_path / "absent"), str(tmp_path / "out"), "--model", tiny).code == 2
    (tmp_path / "in").write_text("")
    realm("batch", str(tmp_path / "in"), str(tmp_path / "in"), "--model", tiny).assert_refused("must not go into")


def test_batch_takes_options_of_a_cluster_with_ray_alone(realm: Realm, tiny: str, tmp_path: Path) -> None:
    (tmp_path / "in").write_text("")
    words = ("batch", str(tmp_path / "in"), str(tmp_path / "out"), "--model", tiny)
    realm(*words, "--ray-workers", "2").assert_refused("--ray-workers and --ray-gpus need --ray")
    assert realm(*words, "--ray", "--ray-gpus", "2").code == 2


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is installed")
def test_batch_says_what_ray_needs(realm: Realm, tiny: str, tmp_path: Path) -> None:
    (tmp_path / "in").write_text("")
    words = ("batch", str(tmp_path / "in"), str(tmp_path / "out"), "--model", tiny, "--ray")
    realm(*words).assert_refused("--ray needs Ray Data; install it on every machine with pip install 'realm-jax[ray]'")


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is not None, reason="the harness is installed")
def test_eval_says_what_it_needs(realm: Realm, tiny: str) -> None:
    realm("eval", "--tasks", "any", "--model", tiny).assert_refused("realm eval needs lm-evaluation-harness")
