"""Owns the shape of the callback that tells how far a download has come."""

from collections.abc import Callable

Progress = Callable[[str, int, int | None], None]
"""Called as ``progress(label, done, total)`` with bytes; ``total`` is None where nobody knows it.

Calls with one label belong to one bar, ``done`` never falls, and the last call has ``done == total`` where the total
is known.
"""
