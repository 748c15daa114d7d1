"""Where a branch joins the residual stream."""

from __future__ import annotations

import dataclasses

from jaxtyping import Array, Float

from realm_jax.nn.linear import Linear
from realm_jax.nn.norm import RMSNorm
from realm_jax.nn.taps import Recorder
from realm_jax.ops.projection import Rms, add_branch, project_add


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Residual:
    """`stream + scale * post_norm(branch)` for a branch that is to come."""

    stream: Float[Array, "tokens hidden"]
    post_norm: RMSNorm | None
    scale: float

    def add(self, branch: Float[Array, "tokens hidden"]) -> Float[Array, "tokens hidden"]:
        """The stream after a branch."""
        implementation = None if self.post_norm is None else self.post_norm.implementation
        options = {"post_norm": self.post_rms, "implementation": implementation}
        return add_branch(self.stream, branch, scale=self.scale, **options)

    def add_projection(
        self, linear: Linear, x: Float[Array, "tokens inner"], tap: Recorder, point: str
    ) -> Float[Array, "tokens hidden"]:
        """`add(linear(x))` in one operation, in two where activation point `point`, the branch, is looked at."""
        if tap.wants(point):
            return self.add(tap(point, linear(x)))
        return project_add(
            x,
            linear.map,
            self.stream,
            scale=self.scale,
            post_norm=self.post_rms,
            implementation=linear.implementation,
        )

    @property
    def post_rms(self) -> Rms | None:
        """The norm of the branch, as operations take it."""
        return None if self.post_norm is None else self.post_norm.rms
