"""What the tests for Apple GPUs share."""

from collections.abc import Iterator

import jax
import metal_platform
import pytest


@pytest.fixture(scope="module")
def primitives() -> Iterator[None]:
    """MLX's primitives of the plug-in, for a module that computes with them; skips it where they are not here."""
    why = metal_platform.register()
    if why is not None:
        pytest.skip(why)
    with jax.numpy_rank_promotion("allow"):  # the plug-in's own functions rely on it
        yield
