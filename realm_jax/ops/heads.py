"""What happens to queries and keys between their projections and attention: normalisation, then rotation."""

from __future__ import annotations

import dataclasses
from typing import Literal, Self

import jax
from jaxtyping import Array, Float

from cpu_kernels import Rms
from realm_jax.ops.norm import normalise
from realm_jax.ops.rope import RopeStyle, RopeTable, apply_rope

HeadNorm = Literal["head", "full"]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class HeadTransform:
    """`rope(norm(q))` and `rope(norm(k))`.

    `norm`: "head" normalises each head over its channels, "full" all heads' channels together, None neither; `norms`
    are those of q and of k. `style` None: no rotation, else by `table`.
    """

    norm: HeadNorm | None = None
    norms: tuple[Rms, Rms] | None = None
    style: RopeStyle | None = None
    table: RopeTable | None = None

    def __call__(
        self,
        q: Float[Array, "tokens heads head_dim"],
        k: Float[Array, "tokens kv_heads head_dim"],
        *,
        implementation: str | None = None,
    ) -> tuple[Float[Array, "tokens heads head_dim"], Float[Array, "tokens kv_heads head_dim"]]:
        """Transform both by operations of their own."""
        q_norm, k_norm = self.norms or (None, None)
        return self._one(q, q_norm, implementation), self._one(k, k_norm, implementation)

    def around(self, table: tuple[jax.Array, jax.Array] | None, weights: tuple[jax.Array, jax.Array] | None) -> Self:
        """The same transformation around other arrays: cosines and sines, and the weights of the norms."""
        norms = self.norms
        if norms is not None and weights is not None:
            norms = (
                dataclasses.replace(norms[0], weight=weights[0]),
                dataclasses.replace(norms[1], weight=weights[1]),
            )
        return dataclasses.replace(self, norms=norms, table=None if table is None else RopeTable(*table))

    def _one(self, x: jax.Array, rms: Rms | None, implementation: str | None) -> jax.Array:
        if rms is not None:
            rows = x if self.norm == "head" else x.reshape(x.shape[0], -1)
            x = normalise(rms, rows, implementation=implementation).reshape(x.shape)
        return x if self.style is None or self.table is None else apply_rope(x, self.table, self.style)
