"""What layers remember of the tokens before: arrays by position, of all of them or of the last few.

The caches of layers of one kind lie in one stack, which a loop over the layers updates in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Shaped


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True, kw_only=True)
class Cache:
    """What the layers of a kind have cached.

    Attributes:
      arrays: [layers, batch, capacity, ...] each, such as keys and values.
      sliding: whether position p lies in slot p % capacity, so that the last ones only are kept;
        else it lies in slot p.
    """

    arrays: tuple[jax.Array, ...]
    sliding: bool = field(default=False, metadata={"static": True})

    def extend(
        self, at: Int[Array, ""], start: Int[Array, ""], new: Sequence[jax.Array]
    ) -> tuple[Cache, list[jax.Array], Int[Array, " slots"]]:
        """Adds tokens to one layer's cache.

        Args:
          at: the layer's place in the stack.
          start: position of the first token.
          new: [batch, time, ...] each, as `arrays`.

        Returns:
          The cache; what the layer's tokens may see of each array, [batch, slots, ...]; and the
          position of every slot: negative or greater than a token's own where it holds nothing.
        """
        time, capacity = new[0].shape[1], self.arrays[0].shape[2]
        if not self.sliding:
            arrays = tuple(_write(a, n, at, start) for a, n in zip(self.arrays, new, strict=True))
            seen = [jax.lax.dynamic_index_in_dim(a, at, keepdims=False) for a in arrays]
            return Cache(arrays=arrays), seen, jnp.arange(capacity)
        positions = start + jnp.arange(time)
        before = start - 1 - (start - 1 - jnp.arange(capacity)) % capacity
        slots = positions[-capacity:] % capacity
        arrays, seen = [], []
        for a, n in zip(self.arrays, new, strict=True):
            own = jax.lax.dynamic_index_in_dim(a, at, keepdims=False)
            seen.append(jnp.concatenate((own, n), axis=1))
            kept = own.at[:, slots].set(n[:, -capacity:])
            arrays.append(jax.lax.dynamic_update_index_in_dim(a, kept, at, 0))
        return (
            Cache(arrays=tuple(arrays), sliding=True),
            seen,
            jnp.concatenate((before, positions)),
        )


def _write(
    array: Shaped[Array, "layers batch capacity *rest"],
    new: Shaped[Array, "batch time *rest"],
    at: Int[Array, ""],
    start: Int[Array, ""],
) -> Shaped[Array, "layers batch capacity *rest"]:
    """The array with new entries of one layer from a position on."""
    where = (at, 0, start, *(0,) * (array.ndim - 3))
    return jax.lax.dynamic_update_slice(array, new[None], where)
