"""A journal keeps whole lines and nothing else, whenever its writer is killed."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from realm_jax.jobs.journal import Journal

ROOT = Path(__file__).parents[2]

# Appends objects that are not there yet, of up to a megabyte, so that a kill can tear one.
WRITER = """
import sys
sys.path.insert(0, sys.argv[1])
import importlib.util
spec = importlib.util.spec_from_file_location("journal", sys.argv[1] + "/realm_jax/jobs/journal.py")
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
from pathlib import Path
with module.Journal(Path(sys.argv[2])) as journal:
    done = {line["number"] for line in journal.lines()}
    for number in range(int(sys.argv[3])):
        if number not in done:
            journal.write({"number": number, "text": "x" * (number * 7919 % 1_000_000)})
"""


def test_what_was_written_is_read_back_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with Journal(path) as journal:
        assert list(journal.lines()) == []
        journal.write({"a": "é\n"})
        journal.write({"b": 2})
        assert list(journal.lines()) == [{"a": "é\n"}, {"b": 2}]
    with Journal(path) as journal:
        assert list(journal.lines()) == [{"a": "é\n"}, {"b": 2}]


@pytest.mark.parametrize("torn", [b"", b'{"b": ', b'{"b": 2}', b"x" * 200_000])
@pytest.mark.parametrize("whole", [b"", b'{"a": 1}\n'])
def test_a_torn_last_line_is_cut_off(tmp_path: Path, whole: bytes, torn: bytes) -> None:
    path = tmp_path / "out.jsonl"
    path.write_bytes(whole + torn)
    with Journal(path) as journal:
        assert path.read_bytes() == whole
        journal.write({"c": 3})
    assert path.read_bytes() == whole + b'{"c": 3}\n'


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("dear diary\n")
    with Journal(path) as journal, pytest.raises(ValueError, match="line 1 of .* is no JSON object"):
        list(journal.lines())
    assert path.read_text() == "dear diary\n"


def test_one_process_writes_at_a_time(tmp_path: Path) -> None:
    with Journal(tmp_path / "out"), pytest.raises(RuntimeError, match="is being written by another process"):
        Journal(tmp_path / "out")
    Journal(tmp_path / "out").close()


def test_a_killed_writer_loses_and_repeats_nothing(tmp_path: Path) -> None:
    path, count, rng = tmp_path / "out.jsonl", 400, random.Random(1)
    command = [sys.executable, "-c", WRITER, str(ROOT), str(path), str(count)]
    kills = torn = 0
    for _ in range(200):
        writer = subprocess.Popen(command)
        if kills < 25:
            size = path.stat().st_size if path.exists() else 0
            while writer.poll() is None and (not path.exists() or path.stat().st_size <= size):
                time.sleep(0.001)
            time.sleep(rng.random() * 0.02)
            writer.send_signal(signal.SIGKILL)
        if writer.wait() == 0:
            break
        kills += 1
        torn += not path.read_bytes().endswith(b"\n")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["number"] for line in lines] == list(range(count))
    assert all(len(line["text"]) == line["number"] * 7919 % 1_000_000 for line in lines)
    assert kills >= 5
