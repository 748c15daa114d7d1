"""Owns the tests of `realm bench`: its cases, its report, and that it computes the tokens that it counts."""

import statistics

import numpy as np
import pytest
from conftest import Realm

import cpu_kernels
from realm_jax import LLM
from realm_jax.cli.bench_measure import Case, measure

BLOCK = 64  # positions of a block of the cache


def test_json_lists_every_combination(realm: Realm, tiny: str) -> None:
    outcome = realm("bench", tiny, "-p", "16", "-n", "4", "-r", "2", "--depth", "0,20", "--batch", "2", "--json")
    rows = outcome.json
    expected = [(test, depth, 2) for depth in (0, 20) for test in ("pp16", "tg4")]
    assert [(row["test"], row["depth"], row["batch"]) for row in rows] == expected
    for row in rows:
        assert row["model"] == tiny and len(row["samples"]) == 2
        assert row["tokens_per_second"] == statistics.median(row["samples"]) > 0


def test_the_table_names_device_and_versions(realm: Realm, tiny: str) -> None:
    outcome = realm("bench", tiny, "-p", "0", "-n", "4", "-r", "1")
    assert outcome.code == 0
    assert "jaxlib" in outcome.out and "CPUs" in outcome.out and "one warm-up run, 1 timed" in outcome.out
    assert outcome.out.splitlines()[-1].split()[:3] == ["tg4", "0", "1"]


@pytest.mark.skipif(not cpu_kernels.is_available(), reason="needs the native library")
def test_the_profile_accounts_for_the_whole_step(realm: Realm, tiny: str) -> None:
    rows = realm("bench", tiny, "-p", "0", "-n", "8", "-r", "1", "--profile", "--json").json
    assert [row.get("test", row.get("profile")) for row in rows] == ["tg8", "tg8"]
    budget = rows[-1]
    parts = {part["part"]: part for part in budget["parts"]}
    assert parts["paged_attention"]["calls"] > 0
    # Parts are shown to a tenth of a microsecond.
    assert sum(part["microseconds"] for part in parts.values()) == pytest.approx(
        budget["microseconds"], abs=0.1 * len(parts)
    )
    printed = realm("bench", tiny, "-p", "0", "-n", "8", "-r", "1", "--profile").out
    assert "XLA, dispatch, scheduling" in printed
    assert realm("bench", tiny, "-n", "8", "--profile", "--implementation", "xla").code != 0


@pytest.mark.parametrize("words", [["-p", "0", "-n", "0"], ["-p", "many"], ["--batch", "0"], ["--depth", "-1"]])
def test_wrong_numbers_are_a_wrong_command_line(realm: Realm, tiny: str, words: list[str]) -> None:
    assert realm("bench", tiny, *words).code == 2


@pytest.mark.parametrize("kind", ["pp", "tg"])
@pytest.mark.parametrize(("depth", "batch"), [(0, 1), (20, 3), (BLOCK + 6, 1)])
def test_the_tokens_that_are_counted_are_computed(
    tiny: str, kept_programs: None, monkeypatch: pytest.MonkeyPatch, kind: str, depth: int, batch: int
) -> None:
    case = Case(kind=kind, tokens=8, depth=depth, batch=batch)
    llm = LLM(tiny, quiet=True, max_num_seqs=batch, max_model_len=case.length)
    computed: list[int] = []
    timed: list[int] = []
    step = type(llm.runner).step

    def counting(self, given, *rest):  # noqa: ANN001 - passes on whatever a step takes
        computed.append(given.steps * sum(len(part.tokens) for part in given.slices))
        return step(self, given, *rest)

    def seconds(work) -> float:  # noqa: ANN001 - a function without arguments
        before = sum(computed)
        work()
        timed.append(sum(computed) - before)
        return 1.0

    monkeypatch.setattr(type(llm.runner), "step", counting)
    monkeypatch.setattr("realm_jax.cli.bench_measure._seconds", seconds)
    result = measure(llm, case, 2)
    # Of the depth whole blocks stay in the cache; what is beyond them is computed anew with the prompt. While
    # decoding, a launch of eight steps, since eight tokens are wanted, is ahead when the timed part begins, and another
    # one when it ends.
    tokens = batch * (depth % BLOCK + 8 if kind == "pp" else 8)
    assert timed == [tokens] * 3
    np.testing.assert_equal(result.samples, [float(tokens)] * 2)
