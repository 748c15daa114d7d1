"""Jobs: long runs over files, which can be killed at any moment and go on where they were."""

from realm_jax.jobs.batch import run_batch
from realm_jax.jobs.ledger import JobSummary

__all__ = ["JobSummary", "run_batch"]
