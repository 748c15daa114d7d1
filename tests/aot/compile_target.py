"""Compiles kernels or models for one target and prints a row for each, a line of JSON each.

usage: python compile_target.py TARGET kernels|models [--match TEXT]

A process per target: plug-ins keep the first for good, and some errors of compilers end the process. Machine code is
dumped for kernels only: of a whole model it takes longer to write than to make.
"""

import argparse
import dataclasses
import json
import tempfile
from pathlib import Path

from aot_targets import prepare

from realm_jax.plan.devices import DEVICES


def main() -> None:
    """Prepare the environment before anything imports jax, then compile."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", choices=DEVICES)
    parser.add_argument("kind", choices=("kernels", "models"))
    parser.add_argument("--match", default="")
    options = parser.parse_args()
    target = DEVICES[options.target]
    with tempfile.TemporaryDirectory() as folder:
        dump = Path(folder, "dump")
        dump.mkdir()
        prepare(target, dump if options.kind == "kernels" else None)
        from aot_kernels import kernel_rows
        from aot_models import MODELS
        from aot_steps import step_rows

        def show(row: object) -> None:
            print(json.dumps(dataclasses.asdict(row)), flush=True)  # type: ignore[call-overload]

        if options.kind == "kernels":
            for row in kernel_rows(target, dump, options.match):
                show(row)
            return
        for name in MODELS:
            if options.match in name:
                for row in step_rows(target, name, Path(folder)):
                    show(row)


if __name__ == "__main__":
    main()
