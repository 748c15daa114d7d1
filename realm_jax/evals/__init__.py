"""Evals: lm-evaluation-harness, with GGUF files as its model `realm`. Needs the `eval` extra."""
