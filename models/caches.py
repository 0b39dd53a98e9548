"""What layers remember of the tokens before, and what they are told of the tokens at hand.

The caches of layers of one kind lie in one stack, which a loop over the layers updates in place.
Sequences of a batch may stand at different positions: tokens that a sequence has fewer than others
are padding behind its own. No token sees padding, and what follows takes its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class Turn(NamedTuple):
    """What a layer is told beside its weights: numbers, so that layers share a program.

    Attributes:
      at: its place in the stacks of weights and caches.
      start: position of the first token; or [batch], of each sequence's.
      frequencies: of its rotary positions, radians per position; or [batch, pairs].
      amplitude: of their cosines and sines.
      window: positions that a token sees, its own included; of layers that slide.
      valid: of the tokens those that are no padding, as `start`; None: all.
    """

    at: Int[Array, ""]
    start: Int[Array, "*batch"]
    frequencies: Float[Array, "*batch pairs"]
    amplitude: Float[Array, ""]
    window: Int[Array, ""]
    valid: Int[Array, "*batch"] | None = None

    def positions(self, time: int) -> Int[Array, "*batch time"]:
        """Positions of so many tokens: int32[time] or [batch, time]."""
        return self.start[..., None] + jnp.arange(time, dtype=jnp.int32)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True, kw_only=True)
class Cache:
    """What layers of a kind remember of the tokens before.

    Attributes:
      arrays: [layers, batch, capacity, ...] each, such as keys and values.
      sliding: whether position p lies in slot p % capacity, so that the last ones only are kept;
        else it lies in slot p.
    """

    arrays: tuple[Any, ...]
    sliding: bool = field(default=False, metadata={"static": True})

    def extend(
        self, turn: Turn, new: Sequence[jax.Array]
    ) -> tuple[Cache, list[jax.Array], Int[Array, "*batch slots"]]:
        """Adds tokens to one layer's part.

        Args:
          new: [batch, time, ...] each, as `arrays`.

        Returns:
          The cache; what the layer's tokens may see of each array, [batch, slots, ...]; and the
          position of every slot: negative or greater than a token's own where it holds nothing.
        """
        slots = jnp.arange(capacity := self.arrays[0].shape[2], dtype=jnp.int32)
        time = new[0].shape[1]
        if self.sliding and not (time == 1 and turn.valid is None):
            return self._turn_over(turn, new, slots)
        first = turn.start % capacity if self.sliding else turn.start
        arrays, seen = [], []
        for array, entries in zip(self.arrays, new, strict=True):
            chex.assert_equal_shape_suffix((array, entries), array.ndim - 3)
            arrays.append(_write(array, turn.at, first, entries))
            seen.append(jax.lax.dynamic_index_in_dim(arrays[-1], turn.at, keepdims=False))
        if self.sliding:
            slots = _last_before(turn.start + 1, slots)
        return replace(self, arrays=tuple(arrays)), seen, slots

    def _turn_over(
        self, turn: Turn, new: Sequence[jax.Array], slots: Int[Array, " slots"]
    ) -> tuple[Cache, list[jax.Array], Int[Array, "*batch seen"]]:
        """Many tokens into a ring: its last ones stay, but these see each other and all of it."""
        time = new[0].shape[1]
        end = turn.start + (time if turn.valid is None else turn.valid)
        taken = _last_before(end, slots) - turn.start[..., None]  # of the new ones, by slot
        arrays, seen = [], []
        for array, entries in zip(self.arrays, new, strict=True):
            layer = jax.lax.dynamic_index_in_dim(array, turn.at, keepdims=False)
            seen.append(jnp.concatenate((entries, layer), axis=1))
            index = jnp.broadcast_to(jnp.maximum(taken, 0), layer.shape[:2])
            rest = tuple(range(2, layer.ndim))
            found = jnp.take_along_axis(entries, jnp.expand_dims(index, rest), axis=1)
            kept = jnp.where(
                jnp.expand_dims(jnp.broadcast_to(taken >= 0, index.shape), rest), found, layer
            )
            arrays.append(jax.lax.dynamic_update_index_in_dim(array, kept, turn.at, 0))
        places = turn.positions(time), _last_before(turn.start, slots)
        return replace(self, arrays=tuple(arrays)), seen, jnp.concatenate(places, axis=-1)

    def grown(self, capacity: int, window: int | None) -> Cache:
        """The same with room for more positions.

        Args:
          capacity: positions.
          window: the most slots of a sliding one.
        """
        slots = capacity if window is None else min(capacity, window)
        more = max(0, slots - self.arrays[0].shape[2])
        # A ring that may grow has not been full: position p lies in slot p.
        padded = [
            jnp.pad(a, [(0, more if axis == 2 else 0) for axis in range(a.ndim)])
            for a in self.arrays
        ]
        return replace(self, arrays=tuple(padded))


def _last_before(
    end: Int[Array, "*batch"], slots: Int[Array, " slots"]
) -> Int[Array, "*batch slots"]:
    """The last position before `end` that lies in each slot of a ring; negative: none."""
    last = end[..., None] - 1
    return last - (last - slots) % slots.shape[0]


def _write(
    array: jax.Array, at: Int[Array, ""], first: Int[Array, "*batch"], entries: jax.Array
) -> jax.Array:
    """Writes [batch, time, ...] to a layer's slots from `first` on, of each sequence its own."""
    zero = jnp.int32(0)
    if first.size == 1:
        where = (at, zero, first.reshape(()), *(zero for _ in array.shape[3:]))
        return jax.lax.dynamic_update_slice(array, entries[None], where)

    def one(array: jax.Array, entries: jax.Array, first: jax.Array) -> jax.Array:
        where = (at, first, *(zero for _ in array.shape[2:]))
        return jax.lax.dynamic_update_slice(array, entries[None], where)

    return jax.vmap(one, (1, 0, 0), 1)(array, entries, first)
