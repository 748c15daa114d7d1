"""Prints what splitting a float32 into two bfloat16 compiles to.

usage: python compile_halves.py TARGET    (a process per target: libraries keep one for good)
"""

import sys

from aot_targets import prepare

from realm_jax.plan.devices import DEVICES


def main(target_name: str) -> None:
    """Compile it and print the program."""
    target = DEVICES[target_name]
    prepare(target)
    import jax
    import jax.numpy as jnp

    from pallas_kernels.halves import halves
    from realm_jax.plan.programs import compile_for, device_mesh

    x = jax.ShapeDtypeStruct((128, 256), jnp.float32)
    print(compile_for(device_mesh(target), target.platform, halves, (x,)).text)


if __name__ == "__main__":
    main(*sys.argv[1:])
