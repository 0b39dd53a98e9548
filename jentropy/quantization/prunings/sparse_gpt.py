"""Weights become 0 one column after the other, and those that follow make up for them.

E. Frantar and D. Alistarh, SparseGPT: massive language models can be accurately pruned in one-shot,
2023.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float32

from jentropy.quantization.feedback import DAMPING, factor_of
from jentropy.quantization.statistics import Statistics

from .magnitude import largest
from .pruning import Pruning


@dataclass(frozen=True, slots=True, kw_only=True)
class SparseGPT(Pruning):
    """By w^2 over what the inverse Hessian has on its diagonal.

    Attributes:
      share: of every row of a block that becomes 0, where there is no pattern.
      pattern: (n, m): of every m neighbours in a row n stay; None: anywhere in a block.
      block: columns that are chosen from together.
      damping: of the Hessian.
    """

    share: float = 0.5
    pattern: tuple[int, int] | None = None
    block: int = 128
    damping: float = DAMPING

    def prune(
        self, weight: Float32[Array, "rows columns"], statistics: Statistics
    ) -> tuple[Float32[Array, "rows columns"], Bool[Array, "rows columns"]]:
        """See `Pruning`."""
        columns = weight.shape[1]
        hessian = jnp.eye(columns) if statistics.hessian is None else statistics.hessian
        factor = factor_of(jnp.asarray(hessian), self.damping)
        group = self.block if self.pattern is None else self.pattern[1]
        return _pruned(
            weight, factor, share=self.share, pattern=self.pattern, group=min(group, columns)
        )


@partial(jax.jit, static_argnames=("share", "pattern", "group"))
def _pruned(
    weight: Float32[Array, "rows columns"],
    factor: Float32[Array, "columns columns"],
    *,
    share: float,
    pattern: tuple[int, int] | None,
    group: int,
) -> tuple[Float32[Array, "rows columns"], Bool[Array, "rows columns"]]:
    """What is left, and where."""
    rows, columns = weight.shape
    extra = -columns % group
    factor = jnp.pad(factor, ((0, extra), (0, extra)))
    factor = factor + jnp.diag(jnp.where(jnp.arange(columns + extra) < columns, 0.0, 1.0))
    work = jnp.pad(weight, ((0, 0), (0, extra)))
    diagonal = jnp.diagonal(factor)

    def one_group(work, start):
        part = lax.dynamic_slice(work, (0, start), (rows, group))
        strip = lax.dynamic_slice(factor, (start, 0), (group, columns + extra))
        inner = lax.dynamic_slice(strip, (0, start), (group, group))
        scale = lax.dynamic_slice(diagonal, (start,), (group,))
        real = start + jnp.arange(group) < columns
        importance = jnp.where(real[None, :], jnp.square(part / scale[None, :]), -1.0)
        kept = largest(importance, share=share, pattern=pattern)

        def column(part, j):
            now = part[:, j]
            left = jnp.where(kept[:, j], now, 0)
            error = (now - left) / scale[j]
            return part - error[:, None] * inner[j][None, :], (left, error)

        _, (left, errors) = lax.scan(column, part, jnp.arange(group))
        moved = jnp.einsum("cr,ck->rk", errors, strip, precision="highest")
        behind = jnp.arange(columns + extra) >= start + group
        return work - jnp.where(behind[None, :], moved, 0), (left, kept.T)

    _, (left, kept) = lax.scan(one_group, work, jnp.arange(0, columns + extra, group))
    left, kept = (a.reshape(columns + extra, rows)[:columns].T for a in (left, kept))
    return left, kept
