"""Jobs: long runs over files, which can be killed at any moment and go on where they were."""

from realm_jax.jobs.batch import JobSummary, run_batch

__all__ = ["JobSummary", "run_batch"]
