"""What layers remember of the tokens before, and what they are told of the tokens at hand.

The caches of layers of one kind lie in one stack, which a loop over the layers updates in place.
Sequences of a batch may stand at different positions: tokens that a sequence has fewer than others
are padding behind its own. No token sees padding, and what follows takes its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jentropy import jax_internals


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


class Seen(NamedTuple):
    """What tokens of a layer may see.

    Attributes:
      arrays: [batch, ..., slots, width] each, such as keys and values.
      slots: int32, positions; negative or greater than a token's own where a slot holds nothing.
      in_order: whether every position but the first comes next to the one before.
    """

    arrays: tuple[jax.Array, ...]
    slots: Int[Array, "*batch slots"]
    in_order: bool


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True, kw_only=True)
class Cache:
    """What layers of a kind remember of the tokens before.

    Attributes:
      arrays: [layers, batch, ..., capacity, width] each, such as keys and values of heads.
      sliding: whether position p lies in slot p % capacity, so that the last ones only are kept;
        else it lies in slot p.
    """

    arrays: tuple[Any, ...]
    sliding: bool = field(default=False, metadata={"static": True})

    @property
    def capacity(self) -> int:
        """Slots of every sequence."""
        return self.arrays[0].shape[-2]

    def extend(
        self, turn: Turn, new: Sequence[jax.Array], *, sharded: bool = False
    ) -> tuple[Cache, Seen]:
        """Adds tokens to one layer's part.

        Args:
          new: [batch, ..., time, width] each, as `arrays`.
          sharded: whether it may lie over a mesh.

        Returns:
          The cache, and what the layer's tokens may see of it.
        """
        slots = jnp.arange(self.capacity, dtype=jnp.int32)
        time = new[0].shape[-2]
        if self.sliding and not (time == 1 and turn.valid is None):
            return self._turn_over(turn, new)
        first = turn.start % self.capacity if self.sliding else turn.start
        arrays, seen = [], []
        for array, entries in zip(self.arrays, new, strict=True):
            chex.assert_shape(entries, (*array.shape[1:-2], time, array.shape[-1]))
            arrays.append(_write(array, turn.at, first, entries, sharded))
            seen.append(jax.lax.dynamic_index_in_dim(arrays[-1], turn.at, keepdims=False))
        if self.sliding:
            slots = _last_before(turn.start + 1, slots)
        return replace(self, arrays=tuple(arrays)), Seen(
            tuple(seen), slots, in_order=not self.sliding
        )

    def _turn_over(self, turn: Turn, new: Sequence[jax.Array]) -> tuple[Cache, Seen]:
        """Many tokens into a ring: its last ones stay, but these see each other and all of it."""
        time = new[0].shape[-2]
        count = jnp.asarray(time if turn.valid is None else turn.valid, jnp.int32)
        arrays, seen = [], []
        for array, entries in zip(self.arrays, new, strict=True):
            layer = jax.lax.dynamic_index_in_dim(array, turn.at, keepdims=False)
            both = jnp.concatenate((_turned(layer, turn.start), entries), axis=-2)
            seen.append(both)
            kept = _turned(_part(both, count, self.capacity), -(turn.start + count))
            arrays.append(jax.lax.dynamic_update_index_in_dim(array, kept, turn.at, 0))
        order = jnp.arange(-self.capacity, time, dtype=jnp.int32)
        positions = turn.start[..., None] + order
        return replace(self, arrays=tuple(arrays)), Seen(tuple(seen), positions, in_order=True)

    def grown(self, capacity: int, window: int | None) -> Cache:
        """The same with room for more positions.

        Args:
          capacity: positions.
          window: the most slots of a sliding one.
        """
        slots = capacity if window is None else min(capacity, window)
        more = max(0, slots - self.capacity)
        # A ring that may grow has not been full: position p lies in slot p.
        padded = [
            jnp.pad(a, [(0, more if axis == a.ndim - 2 else 0) for axis in range(a.ndim)])
            for a in self.arrays
        ]
        return replace(self, arrays=tuple(padded))


def visible(
    positions: Int[Array, "*queries time"],
    slots: Int[Array, "*keys slots"],
    window: Int[Array, ""] | int | None,
) -> Bool[Array, "b 1 1 time slots"]:
    """Which keys each query sees, of every sequence or of all alike."""
    before = positions[..., :, None] - slots[..., None, :]
    seen = (before >= 0) & (slots >= 0)[..., None, :]
    seen = seen if window is None else seen & (before < window)
    return seen.reshape(-1, 1, 1, *seen.shape[-2:])


def _last_before(
    end: Int[Array, "*batch"], slots: Int[Array, " slots"]
) -> Int[Array, "*batch slots"]:
    """The last position before `end` that lies in each slot of a ring; negative: none."""
    last = end[..., None] - 1
    return last - (last - slots) % slots.shape[0]


def _turned(ring: jax.Array, by: Int[Array, "*batch"]) -> jax.Array:
    """A ring [batch, ..., slots, width] whose first slot is the one that was `by`."""
    return _part(jnp.concatenate((ring, ring), axis=-2), by % ring.shape[-2], ring.shape[-2])


def _part(array: jax.Array, first: Int[Array, "*batch"], size: int) -> jax.Array:
    """So many slots from `first` on, of each sequence its own."""
    if first.size == 1:
        return jax.lax.dynamic_slice_in_dim(array, first.reshape(()), size, axis=-2)
    cut = partial(jax.lax.dynamic_slice_in_dim, slice_size=size, axis=-2)
    return jax.vmap(cut)(array, first)


def _write(
    array: jax.Array,
    at: Int[Array, ""],
    first: Int[Array, "*batch"],
    entries: jax.Array,
    sharded: bool,
) -> jax.Array:
    """Writes [batch, ..., time, width] to a layer's slots from `first` on, its own of each row."""
    zero = jnp.int32(0)  # indices are of one dtype, with 64 bits too
    zeros = [zero] * (array.ndim - 4)
    if sharded and first.size > 1:  # what XLA splits between devices

        def one(array: jax.Array, entries: jax.Array, first: jax.Array) -> jax.Array:
            return jax.lax.dynamic_update_slice(array, entries[None], (at, *zeros, first, zero))

        return jax.vmap(one, (1, 0, 0), 1)(array, entries, first)
    starts = first.reshape(-1)
    rows = array.shape[1] // starts.size  # that are written at once

    def write(i: Int[Array, ""], array: jax.Array) -> jax.Array:
        own = jax.lax.dynamic_slice_in_dim(entries, i * rows, rows)[None]
        array = array if sharded else jax_internals.as_it_lies(array)
        return jax.lax.dynamic_update_slice(array, own, (at, i * rows, *zeros, starts[i], zero))

    # One after the other: XLA for TPU copies all of what it scatters to.
    if starts.size == 1:
        return write(zero, array)
    return jax.lax.fori_loop(zero, jnp.int32(starts.size), write, array)
