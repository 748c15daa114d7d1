"""Owns the command line `realm`: one file per subcommand, and `main`, where the process starts."""

from realm_jax.cli.main import main

__all__ = ["main"]
