"""Owns the step budget of `realm bench --profile`: where the microseconds of a decode step go."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from realm_jax.cli.bench_measure import Case, seconds_of
from realm_jax.cli.errors import CommandError

if TYPE_CHECKING:
    from realm_jax import LLM


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Microseconds of a decode step, the mean over a case: the whole, and calls and microseconds of each handler."""

    case: Case
    step: float
    kernels: dict[str, tuple[float, float]]

    @property
    def rows(self) -> Sequence[tuple[Any, ...]]:
        """Name, calls a step, microseconds a step and share of it; what is not a kernel last."""
        parts = [(name, *numbers) for name, numbers in self.kernels.items() if numbers[0]]
        parts.append(("XLA, dispatch, scheduling", 0.0, self.step - sum(spent for _, _, spent in parts)))
        return [(name, round(calls, 1), round(spent, 1), spent / self.step) for name, calls, spent in parts]


def profile_decode(llm: "LLM", case: Case) -> Budget:
    """Run a decode case, compiled before, with the native kernels timed."""
    import cpu_kernels

    if llm.implementation not in ("cpu", "null"):
        raise CommandError("--profile times native kernels; it needs --implementation cpu")
    found: dict[str, cpu_kernels.HandlerTime] = {}

    def timed(work: Any) -> None:
        with cpu_kernels.profile() as times:
            work()
        found.update(times)

    seconds = seconds_of(llm, case, around=timed)
    each = {name: (time.calls / case.tokens, time.seconds / case.tokens * 1e6) for name, time in found.items()}
    return Budget(case=case, step=seconds / case.tokens * 1e6, kernels=each)
