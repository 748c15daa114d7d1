"""Runs llama.cpp's own Hugging Face converter on a model that has no tokenizer.

    python converter.py LLAMA_CPP_SOURCE [arguments of convert_hf_to_gguf.py]

A program of its own, because the converter brings its own `gguf` package.
"""

import importlib
import pkgutil
import sys


def main() -> None:
    """Convert as `convert_hf_to_gguf.py` would, but record the tokenizer as "none"."""
    source = sys.argv.pop(1)
    sys.path[:0] = [f"{source}/gguf-py", source]
    converter = importlib.import_module("convert_hf_to_gguf")
    conversion = importlib.import_module("conversion")
    for module in pkgutil.iter_modules(conversion.__path__):
        importlib.import_module(f"conversion.{module.name}")
    _drop_vocabulary(importlib.import_module("conversion.base").ModelBase)
    converter.main()


def _drop_vocabulary(model_class: type) -> None:
    """Replace `set_vocab` of a model class and of all its descendants."""
    if "set_vocab" in vars(model_class):
        setattr(model_class, "set_vocab", lambda self: self._set_vocab_none())  # noqa: B010 - a type has no such name
    for subclass in model_class.__subclasses__():
        _drop_vocabulary(subclass)


if __name__ == "__main__":
    main()
