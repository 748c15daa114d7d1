"""Realm-JAX runs GGUF language models as pure JAX programs whose weights stay quantised."""
