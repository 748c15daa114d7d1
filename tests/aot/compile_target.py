"""Compiles kernels and models for one target and prints a row for each, a line of JSON each.

usage: python compile_target.py TARGET [--match TEXT] [--only kernels|models]

A process per target: plug-ins keep the first for good, and some errors of compilers end the process.
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
    parser.add_argument("--match", default="")
    parser.add_argument("--only", choices=("kernels", "models"))
    options = parser.parse_args()
    target = DEVICES[options.target]
    with tempfile.TemporaryDirectory() as folder:
        dump = Path(folder, "dump")
        dump.mkdir()
        prepare(target, dump)
        from aot_kernels import kernel_rows
        from aot_models import MODELS, open_without_data
        from aot_steps import step_rows

        def show(row: object) -> None:
            print(json.dumps(dataclasses.asdict(row)), flush=True)  # type: ignore[call-overload]

        if options.only != "models":
            for row in kernel_rows(target, dump, options.match):
                show(row)
        for name in MODELS if options.only != "kernels" else ():
            if options.match in name:
                for row in step_rows(target, dump, name, open_without_data(name, Path(folder))):
                    show(row)


if __name__ == "__main__":
    main()
