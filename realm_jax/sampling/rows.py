"""Rows: what drawing looks at, one row for each request of a batch."""

from typing import NamedTuple

from jaxtyping import Array, Float, UInt32

from realm_jax.sampling.mass import SumTree


class Rows(NamedTuple):
    """The requests of a batch, ready to be drawn from. A fraction is in units of 2**-32, and 0 where it is off.

    Attributes:
        logits: what orders the tokens, padded with -inf.
        tree: weights `exp((logits - max) * inverse_temperature)`, zero where min_p drops the token, and their sums.
        inverse_temperature: what the logits are multiplied by; 0 for greedy requests.
        uniform: a uniform 32-bit number.
        top_k: how many tokens to keep; 0 is off.
        top_p: the kept set is the smallest one whose share of the mass exceeds this fraction.
        typical_p: likewise, in order of typicality.
    """

    logits: Float[Array, "batch padded"]
    tree: SumTree
    inverse_temperature: Float[Array, " batch"]
    uniform: UInt32[Array, " batch"]
    top_k: UInt32[Array, " batch"]
    top_p: UInt32[Array, " batch"]
    typical_p: UInt32[Array, " batch"]
