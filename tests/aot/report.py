"""Compiles every kernel and the models' steps for accelerators that are not here, and prints the table.

usage: python report.py [TARGET ...] [--match TEXT] [--only kernels|models] [--json]
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from aot_rows import Row, table

from realm_jax.plan.devices import DEVICES

_TIMEOUT = 3600


def rows_of(target: str, kind: str, match: str) -> Iterator[Row]:
    """The rows of one process, of a target's kernels or models; a last one where the process failed."""
    command = [sys.executable, str(Path(__file__).with_name("compile_target.py")), target, kind, "--match", match]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT)
    for line in done.stdout.splitlines():
        if line.startswith("{"):
            yield Row(**json.loads(line))
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1:] or [f"the process ended with {done.returncode}"]
        yield Row(target=target, name="(the process)", failure=reason[0][:200])


def main() -> int:
    """Print the rows; 1 where one failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", choices=[*DEVICES, []], default=list(DEVICES), metavar="TARGET")
    parser.add_argument("--match", default="", help="only cases and models whose name contains this")
    parser.add_argument("--only", choices=("kernels", "models"))
    parser.add_argument("--json", action="store_true", help="print a list of objects instead of a table")
    options = parser.parse_args()
    kinds = [options.only] if options.only else ["kernels", "models"]
    rows = [row for target in options.targets for kind in kinds for row in rows_of(target, kind, options.match)]
    print(json.dumps([vars(row) for row in rows], indent=1) if options.json else table(rows))
    return int(any(row.failure for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
