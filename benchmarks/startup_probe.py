"""One cold start, timed inside its own process: imports, then the model; prints seconds and bytes as JSON."""

# The imports are what is measured: this module takes the time before the first of them.
import time

_START = time.perf_counter()


def main() -> None:
    """Load the model that the command line names, for the implementation named after it."""
    import jax
    from flax import nnx

    jax.devices()
    imported_jax = time.perf_counter()
    from realm_jax import LLM

    imported = time.perf_counter()
    import sys

    path, implementation = sys.argv[1:]
    llm = LLM(path, implementation=implementation, quiet=True)
    jax.block_until_ready((llm.runner.leaves, llm.runner.cache))
    loaded = time.perf_counter()

    import json

    from realm_jax import gguf

    seconds = {
        "import_jax": imported_jax - _START,
        "import_realm": imported - imported_jax,
        "load": loaded - imported,
    }
    sizes = {
        "tensors": sum(tensor.nbytes for tensor in gguf.open(path).tensors.values()),
        "held": sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.state(llm.model))),
        "cache": sum(array.nbytes for array in jax.tree.leaves(llm.runner.cache)),
    }
    print(json.dumps({"seconds": seconds, "bytes": sizes}))


if __name__ == "__main__":
    main()
