"""Makes `lm_eval --model realm` work: the harness, which asks no plug-ins, learns the name as it lists its models.

`realm_jax_lm_eval.pth`, installed beside the package, has Python ask `registering_spec` how to import `lm_eval.models`
and costs a process that imports no harness some microseconds. Harmless where the harness is not installed.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.abc import Loader
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType


class _RegisteringLoader(Loader):
    """Loads a module as its own loader does, then adds the name; the class is imported when it is asked for."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        from lm_eval.api.registry import model_registry  # pyright: ignore[reportMissingImports]

        if "realm" not in model_registry:
            model_registry.register("realm", target="realm_jax.evals.harness:RealmLM")


def registering_spec(name: str, path: Sequence[str] | None) -> ModuleSpec | None:
    """How to import the module that lists the harness's models; None where there is none."""
    spec = PathFinder.find_spec(name, path)
    if spec is not None and spec.loader is not None:
        spec.loader = _RegisteringLoader(spec.loader)
    return spec
