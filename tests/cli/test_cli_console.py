"""Owns the tests of what is printed: bars and notes on a terminal alone, JSON in any encoding, tables."""

import io
import json
import sys

import pytest

from realm_jax.cli.console import human_bytes, print_json, print_table, progress_bars, status


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_bars_are_drawn_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    with progress_bars() as report:
        assert report is not None
        assert sys.stderr.getvalue() == "", "nothing is drawn before there is something"
        report("Downloading tiny", 1_000_000, None)
        report("Downloading tiny", 2_000_000, 2_000_000)
    assert "Downloading tiny" in sys.stderr.getvalue() and "2.0/2.0 MB" in sys.stderr.getvalue()


def test_a_note_on_a_terminal_is_erased(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    with status("Loading ...") as clear:
        assert sys.stderr.getvalue() == "Loading ..."
        clear()
    assert sys.stderr.getvalue() == "Loading ...\r\x1b[2K"


def test_a_pipe_gets_neither(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bars() as report, status("Loading ..."):
        assert report is None
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_json_survives_every_encoding(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    value = {"text": "ö 😀 \udcff"}
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding, errors="strict"))
    print_json(value)
    assert json.loads(raw.getvalue().decode(encoding)) == value


def test_tables_align_numbers_to_the_right(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("name", "speed"), [("a", 1.234), ("long", 100)])
    assert capsys.readouterr().out == "name  speed\na      1.23\nlong    100\n"


def test_bytes_are_written_with_decimal_units() -> None:
    assert [human_bytes(n) for n in (999, 98_362_432, 2 * 10**12)] == ["999 B", "98.4 MB", "2.0 TB"]
