"""Caches of sequences that wait, on the host: coded by the archive codec, and back bit for bit.

Every layer's array is coded by itself, with the slots as its last axis: numbers of one channel
have about the same size, and lie next to each other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jentropy import modes
from jentropy.containers import CompressedTensor, compress, decompress

from .caches import Cache
from .state import State


@dataclass(frozen=True, slots=True, kw_only=True)
class SpilledCache:
    """A cache of which nothing is on a device.

    Attributes:
      empty: the cache's arrays as shapes, dtypes and shardings.
      packed: of each array its layers, [batch, ..., slots].
    """

    empty: Cache
    packed: tuple[tuple[CompressedTensor, ...], ...]

    @classmethod
    def of(cls, cache: Cache, slots: int | None) -> SpilledCache:
        """Codes the first slots of a cache; None: all."""
        packed = []
        for array in cache.arrays:
            layers = np.asarray(array[..., :slots, :])
            packed.append(tuple(compress(one.swapaxes(-1, -2).copy()) for one in layers))
        abstract = [
            jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding) for a in cache.arrays
        ]
        return cls(empty=replace(cache, arrays=tuple(abstract)), packed=tuple(packed))

    def restore(self) -> Cache:
        """The cache, with nothing in the slots that were not coded."""
        arrays = []
        for empty, layers in zip(self.empty.arrays, self.packed, strict=True):
            host = np.zeros(empty.shape, empty.dtype)
            for target, one in zip(host, layers, strict=True):
                found = decompress(one).swapaxes(-1, -2)
                target[..., : found.shape[-2], :] = found
            arrays.append(jax.device_put(host, empty.sharding))
        return replace(self.empty, arrays=tuple(arrays))


@dataclass(frozen=True, slots=True, kw_only=True)
class Spilled:
    """What `spill` made of caches.

    Attributes:
      leaves: of the pytree, a `SpilledCache` for each `Cache`, and other arrays on the host.
      structure: of the pytree.

    Example:
      >>> cache = Cache(arrays=(jnp.ones((2, 1, 999, 4), jnp.bfloat16),))
      >>> spilled = spill(cache)
      >>> spilled.bits_per_value < 16, spilled.restore().arrays[0].shape
      (True, (2, 1, 999, 4))
    """

    leaves: tuple[Any, ...]
    structure: jax.tree_util.PyTreeDef

    @property
    def caches(self) -> list[SpilledCache]:
        """The coded caches."""
        return [one for one in self.leaves if isinstance(one, SpilledCache)]

    @property
    def nbytes(self) -> int:
        """Bytes that the caches take on the host."""
        return sum(layer.nbytes for layer in self._layers())

    @property
    def bits_per_value(self) -> float:
        """Bits for each number of the caches that was coded; of BF16 there were 16."""
        return 8 * self.nbytes / sum(math.prod(layer.shape) for layer in self._layers())

    def _layers(self) -> list[CompressedTensor]:
        return [layer for one in self.caches for layers in one.packed for layer in layers]

    @modes.detached
    def restore(self) -> Any:
        """What was given to `spill`, on the devices where it was.

        Returns:
          The same bits, but for slots that hold nothing: those are 0.
        """
        return jax.tree.unflatten(
            self.structure,
            [
                leaf.restore() if isinstance(leaf, SpilledCache) else jnp.asarray(leaf)
                for leaf in self.leaves
            ],
        )


@modes.detached
def spill(cache: Any, slots: int | None = None) -> Spilled:
    """Codes caches for the host, so that a device has room for others.

    Args:
      cache: a `Cache`, several, or a pytree that has some, as a `State`. It stays as it is: delete
        it to free its memory.
      slots: first slots that hold something; None: all, of a `State` as many as its sequences
        are long.

    Returns:
      The coded caches.

    Example:
      >>> from jentropy import models
      >>> model = models.load(models.BUNDLED)
      >>> state = models.prefill(model, [list(range(300, 400))])
      >>> spilled = spill(state)
      >>> spilled.bits_per_value < 13
      True
      >>> again = models.advance(model, spilled.restore(), 5)
      >>> bool((again.tokens == models.advance(model, state, 5).tokens).all())
      True
    """
    if slots is None and isinstance(cache, State):
        slots = int(cache.lengths.max())
    leaves, structure = jax.tree.flatten(cache, is_leaf=lambda node: isinstance(node, Cache))
    packed = [
        SpilledCache.of(leaf, slots) if isinstance(leaf, Cache) else np.asarray(leaf)
        for leaf in leaves
    ]
    return Spilled(leaves=tuple(packed), structure=structure)
