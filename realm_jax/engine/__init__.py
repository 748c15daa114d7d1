"""The engine: sequences, cache blocks, bucketed batches, and the runner that holds the compiled programs."""

from realm_jax.engine.engine import Engine
from realm_jax.engine.runner import Runner
from realm_jax.engine.sequence import Sequence

__all__ = ["Engine", "Runner", "Sequence"]
