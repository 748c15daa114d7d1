"""Kernels for GPUs and TPUs, arrays to arrays, written in Pallas; imports jax and never realm_jax."""

__all__: list[str] = []
