"""The matrices of a checkpoint that quantisers take, one by one as the model has them.

Those are the projections within the layers: not embeddings, not the output projection, no routers.
What a checkpoint stores together (q, k and v; gate and up; all experts) comes apart, and transposed
matrices come as [outputs, inputs]: each is the matrix of one product, under the name that most
checkpoints have for it, by which `load` finds it too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float32

from jentropy.checkpoints import Checkpoint, Tensor
from jentropy.formats import QuantizedTensor

from .decoder import Decoder
from .experts import Projection, Router
from .layers import Linear
from .loading import placed, read_config
from .names import LAYERS, Path, Place
from .stored import StoredWeights

WEIGHT = "weight"


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A matrix in a tensor of the checkpoint.

    Attributes:
      tensor: its name.
      place: where it goes in the model.
      expert: which one of the tensor's it is; None: the tensor is no stack.
    """

    tensor: str
    place: Place
    expert: int | None = None


class Matrices(Mapping[str, np.ndarray]):
    """The matrices of a checkpoint, float32[outputs, inputs], each read when it is asked for.

    Args:
      checkpoint: of an architecture in `ARCHITECTURES`.

    Attributes:
      parts: where each lies.
      names: of the checkpoint's tensors that have matrices.

    Example:
      >>> from jentropy import models, open_checkpoint
      >>> found = Matrices(open_checkpoint(models.BUNDLED))
      >>> len(found), found["model.layers.0.mlp.up_proj.weight"].shape
      (35, (512, 192))
    """

    def __init__(self, checkpoint: Checkpoint):
        self.checkpoint, self._stored = checkpoint, StoredWeights(checkpoint)
        self._read: tuple[str, np.ndarray] | None = None  # the last tensor
        architecture, config = read_config(checkpoint)
        tensors = {name: checkpoint.tensor(name) for name in checkpoint.names()}
        model, named, _ = placed(architecture, config, tensors, jnp.float32, {})
        modules = dict(nnx.iter_modules(model))
        self.parts: dict[str, Part] = {}
        for name, places in named.items():
            for place in places:
                if _is_projection(modules.get(place.path[:-1]), place):
                    self._add(name, place, model.members)
        self.names = {part.tensor for part in self.parts.values()}

    def _add(self, name: str, place: Place, members: tuple[tuple[int, ...], ...]) -> None:
        layer = members[place.path[1]][place.index[0]]
        *module, last = place.path[2:-1]
        start = ["model", LAYERS, str(layer), *module]
        if "experts" not in module:
            self.parts[".".join((*start, last, WEIGHT))] = Part(tensor=name, place=place)
            return
        stacked = len(place.index) == 1
        experts = range(place.shape[0]) if stacked else [place.index[1]]
        for expert in experts:
            made = Part(tensor=name, place=place, expert=expert if stacked else None)
            self.parts[".".join((*start, str(expert), last, WEIGHT))] = made

    def __getitem__(self, name: str) -> Float32[np.ndarray, "outputs inputs"]:
        part = self.parts[name]
        if self._read is None or self._read[0] != part.tensor:
            tensor = self.checkpoint.tensor(part.tensor)
            weight = self._stored.of(tensor, tensor.codes)
            self._read = part.tensor, np.asarray(weight.dequantize(np.float32))
        array = part.place.of_array(self._read[1])
        return np.ascontiguousarray(array if part.expert is None else array[part.expert])

    def __iter__(self) -> Iterator[str]:
        return iter(self.parts)

    def __len__(self) -> int:
        return len(self.parts)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a matrix, unread."""
        part = self.parts[name]
        shape = list(part.place.shape[-2:])
        if part.place.rows is not None:
            first, end = part.place.rows
            shape[-1 if part.place.transposed else -2] = len(range(first, end, part.place.step))
        return tuple(shape[::-1] if part.place.transposed else shape)

    def weights(self) -> int:
        """Numbers in all of them."""
        return sum(math.prod(self.shape(name)) for name in self)

    def others(self) -> Iterator[tuple[str, Any]]:
        """What of the checkpoint is no matrix: arrays as they are, other weights as stored."""
        for name in self.checkpoint.names():
            tensor = self.checkpoint.tensor(name)
            if name not in self.names and not self._stored.has(name):
                yield name, _as_it_is(tensor)


def located(model: Decoder, name: str, part: Part) -> tuple[Path, tuple[int, ...]]:
    """Where a matrix lies in a model, whose layers may lie in other stacks than `part` says.

    Returns:
      The path of its parameter, and its index there.
    """
    layer = int(name.split(".")[2])
    kind = next(k for k, members in enumerate(model.members) if layer in members)
    expert = part.place.index[1:] if part.expert is None else (part.expert,)
    at = model.members[kind].index(layer)
    return (LAYERS, kind, *part.place.path[2:]), (at, *expert)


def address(name: str) -> str:
    """What `Calibration` calls a matrix.

    Example:
      >>> address("model.layers.0.mlp.up_proj.weight")
      'layers.0.mlp.up_proj'
    """
    return name.removeprefix("model.").removesuffix(f".{WEIGHT}")


def _is_projection(module: Any, place: Place) -> bool:
    return (
        place.path[0] == LAYERS
        and place.path[-1] == WEIGHT
        and isinstance(module, Linear | Projection)
        and not isinstance(module, Router)
    )


def _as_it_is(tensor: Tensor) -> np.ndarray | QuantizedTensor:
    codes = tensor.codes
    return tensor.values(codes) if tensor.dtype is not None else replace(tensor.weight, codes=codes)
