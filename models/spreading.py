"""Parameters that are filled in place as weights are read: on one device, or parts on each of many.

Every device fills stacks of its own, as if it were alone; in the end they are the parts of arrays
over the mesh. Processes read the same checkpoint and hear once what the others' parts came to be
like, so that all decide alike.
"""

from __future__ import annotations

import functools
import json
import math
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jentropy import jax_internals
from jentropy.checkpoints import Tensor
from jentropy.formats import Format
from jentropy.pallas_kernels import ResidentTensor, ShardedTensor
from jentropy.pallas_kernels.filling import filled_up, likeness, put

from .names import LAYERS, Path, Place
from .sharding import Sharding, Split, part


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """What some devices have of a weight, all of them the same.

    Attributes:
      weight: codes or numbers, not laid out.
      devices: that have it; None is the default one.
      axes, index: of the stack that it goes to, as of `filling.put`.
    """

    weight: Any
    devices: tuple[jax.Device | None, ...] = (None,)
    axes: tuple[int, ...]
    index: tuple[int, ...]


class Filling(ABC):
    """Parameters that are being filled."""

    @abstractmethod
    def wanted(self, tensor: Tensor, place: Place) -> tuple[slice, ...] | None:
        """What of a weight's codes has to be read, as of `Checkpoint.read_all`."""

    @abstractmethod
    def pieces(self, name: str, place: Place, weight: Any) -> Iterator[Piece]:
        """What of a weight the devices of this process have.

        Args:
          name: of the weight in the checkpoint.
          weight: what of it goes to the place, as far as it was wanted.
        """

    @abstractmethod
    def add(self, name: str, path: Path, piece: Piece, weight: Any) -> None:
        """Takes a piece that was laid out, of the weight called `name`, to its parameter."""

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

    def pieces(self, name: str, place: Place, weight: Any) -> Iterator[Piece]:
        yield Piece(weight=weight, axes=place.axes, index=place.index)

    def add(self, name: str, path: Path, piece: Piece, weight: Any) -> None:
        self.likes[name] = likeness(weight)
        self.kinds[path].add(self.likes[name])
        if len(self.kinds[path]) == 1:
            self.stacks[path] = put(self.stacks.pop(path, None), piece.axes, piece.index, weight)

    def alike(self) -> tuple[dict[str, Hashable], set[str], bool]:
        return self.likes, set(), max(map(len, self.kinds.values())) == 1

    def whole(self) -> dict[Path, Any]:
        return self.stacks


class OverMesh(Filling):
    """On every device its part.

    Args:
      sharding: says which.
    """

    def __init__(self, sharding: Sharding):
        self.sharding = sharding
        self.stacks: dict[Path, dict[jax.Device, Any]] = defaultdict(dict)
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

    def pieces(self, name: str, place: Place, weight: Any) -> Iterator[Piece]:
        split, read = self.read.get(name) or (self._split(place, weight), 0)
        self.splits[place.path] = split
        if split is None:
            devices = _holders(self.sharding.mesh, ())[0]
            yield Piece(weight=weight, devices=devices, axes=place.axes, index=place.index)
            return
        experts = place.axes[1] if len(place.axes) > 1 else None
        one_of_stack = split.axis is not None and split.axis < -len(weight.shape)
        for number, devices in _holders(self.sharding.mesh, split.axes).items():
            axes, index, first = (*place.axes[:1], 1), (*place.index[:1], 0), number * split.size
            if one_of_stack:
                if not first <= place.index[1] < first + split.size:
                    continue
                axes, index = (*axes, split.size), (*index, place.index[1] - first)
            elif experts is not None:
                axes, index = (*axes, experts), (*index, place.index[1])
            cut = weight
            if split.axis is not None and not one_of_stack:
                cut = part(weight, split.axis, first - read, split.size)
            yield Piece(weight=cut, devices=devices, axes=axes, index=index)

    def add(self, name: str, path: Path, piece: Piece, weight: Any) -> None:
        key = _text(path)
        like: Any = likeness(weight)
        self.likes[key][name].add(repr([one for one in like if not isinstance(one, Format)]))
        if len(set().union(*self.likes[key].values())) > 1:
            return
        for device in piece.devices:
            held = self.stacks[path].pop(device, None)
            own = jax.device_put(weight, device)
            self.stacks[path][device] = put(held, piece.axes, piece.index, own)

    def alike(self) -> tuple[dict[str, Hashable], set[str], bool]:
        own = {
            "likes": {key: {n: sorted(t) for n, t in of.items()} for key, of in self.likes.items()},
            "sizes": {_text(path): _sizes(of.values()) for path, of in self.stacks.items()},
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

    def _assembled(self, path: Path, stacks: dict[jax.Device, Any], sizes: list[Any]) -> Any:
        """The arrays of all devices as arrays over the mesh."""
        split = self.splits[path]
        layers = int(path[0] == LAYERS)
        spec, count = PartitionSpec(), 1
        if split is not None:
            spec = PartitionSpec(*(None for _ in range(layers)), split.axes or None)
            count = split.count
        place = NamedSharding(self.sharding.mesh, spec)

        def over_mesh(arrays: list[jax.Array]) -> jax.Array:
            shape = list(arrays[0].shape)
            if split is not None:
                shape[layers] = count
            return jax.make_array_from_single_device_arrays(tuple(shape), place, arrays)

        first = next(iter(stacks.values()))
        if not isinstance(first, ResidentTensor):
            return over_mesh(list(stacks.values()))
        options = {n: max(told["options"][n] for told in sizes) for n, _ in first.options}
        arrays = {}
        for name in first.arrays:
            own = [stack.arrays[name] for stack in stacks.values()]
            if name in first.record.lists:
                axis, filler = first.record.lists[name]
                most = max(told["lists"][name] for told in sizes)
                own = [filled_up(array, axis, most, filler) for array in own]
            arrays[name] = over_mesh(own)
        return replace(first, arrays=arrays, options=tuple(sorted(options.items())))

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


def _sizes(stacks: Iterable[Any]) -> dict[str, dict[str, int]]:
    """The longest lists and the largest options of some devices' stacks."""
    sizes: dict[str, dict[str, int]] = {"lists": {}, "options": {}}
    for stack in stacks:
        if isinstance(stack, ResidentTensor):
            lists = {
                n: stack.arrays[n].shape[axis]
                for n, (axis, _) in stack.record.lists.items()
                if n in stack.arrays
            }
            for kind, found in (("lists", lists), ("options", dict(stack.options))):
                for name, value in found.items():
                    sizes[kind][name] = max(value, sizes[kind].get(name, value))
    return sizes


@functools.cache
def _holders(mesh: Mesh, axes: tuple[str, ...]) -> dict[int, tuple[jax.Device, ...]]:
    """The devices of this process that have each part, by its number."""
    count = math.prod(mesh.shape[axis] for axis in axes)
    place = NamedSharding(mesh, PartitionSpec(axes or None))
    holders: dict[int, list[jax.Device]] = defaultdict(list)
    for device, (where,) in place.addressable_devices_indices_map((count,)).items():
        holders[where.start or 0].append(device)
    return {number: tuple(devices) for number, devices in sorted(holders.items())}
