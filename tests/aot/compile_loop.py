"""Prints the instructions in the main loop of CUDA kernels, a line of JSON for each case.

usage: python compile_loop.py TARGET MATCH    (a process per target: plug-ins keep one for good)
"""

import json
import sys
import tempfile
from pathlib import Path

from aot_targets import empty, prepare

from realm_jax.plan.devices import DEVICES


def main(target_name: str, match: str) -> None:
    """Compile every case whose name contains `match`; the longest of its kernels counts."""
    target = DEVICES[target_name]
    with tempfile.TemporaryDirectory() as folder:
        dump = Path(folder)
        prepare(target, dump)
        import jax
        from aot_cuda_code import kernels_of
        from aot_kernels import all_cases

        from realm_jax.plan.programs import compile_for, device_mesh

        mesh = device_mesh(target)
        for case in all_cases():
            if match not in case.name or target.backend not in case.backends:
                continue
            with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
                program = case.program(target.backend)
            empty(dump)
            compile_for(mesh, target.platform, program.function, program.operands)
            kernels = [k for path in dump.glob("*.ptx") for k in kernels_of(path, program.entry)]
            longest = max(kernels, key=lambda kernel: kernel.instructions)
            print(json.dumps({"name": case.name, "loop": longest.loops[0].instructions}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
