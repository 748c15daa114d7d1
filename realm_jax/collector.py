"""Python's cyclic garbage collector, kept still while many objects are made that all stay."""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def without_collections() -> Iterator[None]:
    """Run no collection inside; the collector is left on or off as it was found.

    Loading a model makes 100,000 objects and no garbage, for which the collector would look through the whole process,
    jax included: a tenth of a second each time.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
