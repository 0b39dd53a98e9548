"""Parameters that are filled in place as weights are read: on one device, or parts on each of many.

The devices of a process fill their stacks together, each with its part, by one program for all; in
the end these are the parts of arrays over the mesh. Processes read the same checkpoint and hear
once what the others' parts came to be like, so that all decide alike.
"""

from __future__ import annotations

import functools
import json
import math
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jentropy import jax_internals
from jentropy.checkpoints import Tensor
from jentropy.formats import Format
from jentropy.pallas_kernels import ResidentTensor, ShardedTensor
from jentropy.pallas_kernels.filling import filled_up, likeness, placed, put, side_by_side

from .names import Path, Place
from .sharding import Sharding, Split, part


@dataclass(frozen=True, slots=True, kw_only=True)
class Pieces:
    """What devices of this process have of a weight.

    Attributes:
      weights: different parts, by number: codes or numbers, not laid out.
      axes, index: of the stack that they go to, as of `filling.put`.
    """

    weights: dict[int, Any]
    axes: tuple[int, ...]
    index: tuple[int, ...]


class Filling(ABC):
    """Parameters that are being filled."""

    @abstractmethod
    def wanted(self, tensor: Tensor, place: Place) -> tuple[slice, ...] | None:
        """What of a weight's codes has to be read, as of `Checkpoint.read_all`."""

    @abstractmethod
    def pieces(self, name: str, place: Place, weight: Any) -> Pieces:
        """What of a weight the devices of this process have.

        Args:
          name: of the weight in the checkpoint.
          weight: what of it goes to the place, as far as it was wanted.
        """

    @abstractmethod
    def add(self, name: str, path: Path, pieces: Pieces, laid: dict[int, Any]) -> None:
        """Takes pieces that were laid out, of the weight called `name`, to their parameter."""

    @abstractmethod
    def alike(self) -> tuple[dict[str, Hashable], set[str], bool]:
        """What pieces came to be like.

        Returns:
          Likeness of every weight by name; names of weights whose own pieces are not alike; and
          whether all of each parameter are.
        """

    @abstractmethod
    def whole(self) -> dict[Path, Any]:
        """The parameters, by path."""


@dataclass(slots=True)
class OnOneDevice(Filling):
    """Everything on the default device."""

    stacks: dict[Path, Any] = field(default_factory=dict)
    likes: dict[str, Hashable] = field(default_factory=dict)
    kinds: dict[Path, set[Hashable]] = field(default_factory=lambda: defaultdict(set))

    def wanted(self, tensor: Tensor, place: Place) -> tuple[slice, ...] | None:
        return ()

    def pieces(self, name: str, place: Place, weight: Any) -> Pieces:
        return Pieces(weights={0: weight}, axes=place.axes, index=place.index)

    def add(self, name: str, path: Path, pieces: Pieces, laid: dict[int, Any]) -> None:
        self.likes[name] = likeness(laid[0])
        self.kinds[path].add(self.likes[name])
        if len(self.kinds[path]) == 1:
            held = self.stacks.pop(path, None)
            self.stacks[path] = put(held, pieces.axes, pieces.index, laid[0])

    def alike(self) -> tuple[dict[str, Hashable], set[str], bool]:
        return self.likes, set(), max(map(len, self.kinds.values())) == 1

    def whole(self) -> dict[Path, Any]:
        return {path: placed(stack) for path, stack in self.stacks.items()}


class OverMesh(Filling):
    """On every device its part.

    Args:
      sharding: says which.
    """

    def __init__(self, sharding: Sharding):
        self.sharding = sharding
        own = sorted(
            (device for of in _holders(sharding.mesh, ()).values() for device in of),
            key=lambda device: device.id,
        )
        self.here = Mesh(np.array(own), ("here",))
        self.stacks: dict[Path, Any] = {}
        self.splits: dict[Path, Split | None] = {}
        # By weight of which a part was read only: how it lies, and where the part begins.
        self.read: dict[str, tuple[Split, int]] = {}
        # By path and weight, what its parts came to be like: as text, which processes exchange.
        self.likes: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
        self.told: list[Mapping[str, Any]] = []

    def wanted(self, tensor: Tensor, place: Place) -> tuple[slice, ...] | None:
        shape = tensor.shape
        split = self._split(place, jax.ShapeDtypeStruct(shape, np.uint8))
        if split is None or split.axis is None:
            return ()
        numbers = list(_holders(self.sharding.mesh, split.axes))
        first, end = numbers[0] * split.size, (numbers[-1] + 1) * split.size
        if split.axis < -len(shape):  # one expert
            return () if first <= place.index[1] < end else None
        if tensor.dtype is None or place.rows or place.transposed:
            return ()
        if first == 0 and end >= shape[split.axis]:
            return ()
        self.read[tensor.name] = split, first
        part = [slice(None)] * len(shape)
        part[split.axis] = slice(first, end)
        return tuple(part)

    def _split(self, place: Place, weight: Any) -> Split | None:
        experts = place.axes[1] if len(place.axes) > 1 else None
        return self.sharding.of(place.path, weight, experts)

    def pieces(self, name: str, place: Place, weight: Any) -> Pieces:
        split, read = self.read.get(name) or (self._split(place, weight), 0)
        self.splits[place.path] = split
        axes, index = place.axes, place.index
        numbers = list(_holders(self.sharding.mesh, split.axes if split else ()))
        if split is None or split.axis is None:
            return Pieces(weights={0: weight}, axes=axes, index=index)
        if split.axis < -len(weight.shape):  # one expert
            number, at = divmod(index[1], split.size)
            weights = {number: weight} if number in numbers else {}
            return Pieces(weights=weights, axes=(axes[0], split.size), index=(index[0], at))
        weights = {
            number: part(weight, split.axis, number * split.size - read, split.size)
            for number in numbers
        }
        return Pieces(weights=weights, axes=axes, index=index)

    def add(self, name: str, path: Path, pieces: Pieces, laid: dict[int, Any]) -> None:
        if not laid:
            return
        key, split = _text(path), self.splits[path]
        for weight in laid.values():
            like: Any = likeness(weight)
            self.likes[key][name].add(repr([one for one in like if not isinstance(one, Format)]))
        if len(set().union(*self.likes[key].values())) > 1:
            return
        holders, only = _holders(self.sharding.mesh, split.axes if split else ()), None
        if laid.keys() != holders.keys():  # an expert: what others are given is not written
            mine = {device for number in laid for device in holders[number]}
            only = jnp.array([device in mine for device in self.here.devices.flat])
            laid = dict.fromkeys(holders, next(iter(laid.values())))
        weights = {device: laid[number] for number in holders for device in holders[number]}
        ordered = {device: weights[device] for device in self.here.devices.flat}
        axes = None if split is None else self.here.axis_names if split.axes else ()
        weight = side_by_side(ordered, self.here, axes)
        held = self.stacks.pop(path, None)
        self.stacks[path] = put(held, pieces.axes, pieces.index, weight, only)

    def alike(self) -> tuple[dict[str, Hashable], set[str], bool]:
        own = {
            "likes": {key: {n: sorted(t) for n, t in of.items()} for key, of in self.likes.items()},
            "sizes": {_text(path): _sizes(stack) for path, stack in self.stacks.items()},
        }
        self.told = [json.loads(text) for text in jax_internals.exchanged(json.dumps(own))]
        likes: dict[str, set[str]] = defaultdict(set)
        unlike, one_kind = set(), True
        for key in self.likes:
            of_path: dict[str, set[str]] = defaultdict(set)
            for told in self.told:
                for name, texts in told["likes"].get(key, {}).items():
                    of_path[name] |= set(texts)
            unlike |= {name for name, texts in of_path.items() if len(texts) > 1}
            one_kind &= len(set().union(*of_path.values())) == 1
            for name, texts in of_path.items():
                likes[name] |= texts
        return {name: frozenset(t) for name, t in likes.items()}, unlike, one_kind

    def whole(self) -> dict[Path, Any]:
        made = {}
        for path in list(self.stacks):
            sizes = [told["sizes"][_text(path)] for told in self.told]
            parts = self._assembled(path, self.stacks.pop(path), sizes)
            split = self.splits[path]
            made[path] = parts if split is None else self._sharded(parts, split)
        return made

    def _assembled(self, path: Path, stack: Any, sizes: list[Any]) -> Any:
        """Arrays over the mesh of those over the devices of this process."""
        split = self.splits[path]

        def over_mesh(array: jax.Array, leading: int) -> jax.Array:
            shape, spec = list(array.shape), PartitionSpec()
            if split is not None:
                shape[leading] = split.count
                spec = PartitionSpec(*(None for _ in range(leading)), split.axes or None)
            place = NamedSharding(self.sharding.mesh, spec)
            if not array.size:  # a program gives such an array to all devices whole
                return jnp.zeros(shape, array.dtype, device=place)
            own = [shard.data for shard in array.addressable_shards]
            return jax.make_array_from_single_device_arrays(tuple(shape), place, own)

        leading = len(stack.shape) - 3  # axes before that of the parts
        if not isinstance(stack, ResidentTensor):
            return over_mesh(stack, leading)
        options = {n: max(told["options"][n] for told in sizes) for n, _ in stack.options}
        arrays = {}
        for name, array in stack.arrays.items():
            if name in stack.record.lists:
                axis, filler = stack.record.lists[name]
                most = max(told["lists"][name] for told in sizes)
                array = filled_up(array, axis, most, filler)
            arrays[name] = over_mesh(array, leading)
        return replace(stack, arrays=arrays, options=tuple(sorted(options.items())))

    def _sharded(self, parts: Any, split: Split) -> ShardedTensor:
        return ShardedTensor(
            parts=parts,
            mesh=self.sharding.mesh,
            axes=split.axes,
            split=split.axis,
            logical=split.shape,
            gathered=split.gathered,
            batch=self.sharding.batch,
        )


def _text(path: Path) -> str:
    return ".".join(map(str, path))


def _sizes(stack: Any) -> dict[str, dict[str, int]]:
    """How long lists are, and the options."""
    if not isinstance(stack, ResidentTensor):
        return {"lists": {}, "options": {}}
    lists = {
        name: stack.arrays[name].shape[axis]
        for name, (axis, _) in stack.record.lists.items()
        if name in stack.arrays
    }
    return {"lists": lists, "options": dict(stack.options)}


@functools.cache
def _holders(mesh: Mesh, axes: tuple[str, ...]) -> dict[int, tuple[jax.Device, ...]]:
    """The devices of this process that have each part, by its number."""
    count = math.prod(mesh.shape[axis] for axis in axes)
    place = NamedSharding(mesh, PartitionSpec(axes or None))
    holders: dict[int, list[jax.Device]] = defaultdict(list)
    for device, where in place.addressable_devices_indices_map((count,)).items():
        assert where is not None
        holders[where[0].start or 0].append(device)
    return {number: tuple(devices) for number, devices in sorted(holders.items())}
