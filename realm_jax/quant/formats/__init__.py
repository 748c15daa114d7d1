"""The block layouts of GGUF weight types, one module per family."""
