"""What the tests of both real models take from a step to compare it with the recording."""

import jax
import jax.numpy as jnp

from realm_jax.models import ForwardBatch, ModelOutput


def compare(output: ModelOutput, batch: ForwardBatch, top_ids: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The best token and the log-probabilities of the recorded ones, without a second array of the logits' size."""
    chosen = jnp.take_along_axis(output.logits, top_ids, axis=-1)
    return jnp.argmax(output.logits, axis=-1), chosen - jax.nn.logsumexp(output.logits, axis=-1, keepdims=True)
