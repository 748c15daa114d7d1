"""Measures the library beside its peers; `python -m benchmarks` runs everything, each module one part of it."""
