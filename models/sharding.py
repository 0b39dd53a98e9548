"""How weights lie over a mesh: names for their axes, and rules from these to axes of the mesh.

The names are those of the field; `rules` map them as in Flax, the first that fits an axis first:

    batch      sequences: activations, no weight
    vocab      rows of the embedding and of the head
    heads      rows of q, columns of o         kv_heads  rows of k and v
    mlp        rows of gate and up, columns of down
    expert     matrices of a stack of experts
    residual   rows of o and down: what is added to the residual stream
    features   rows of any other matrix
    embed      columns of all but o and down

A weight is split along one axis, that of the first rule that names one of its own. Where `residual`
comes before `heads` and `mlp`, as by default, all matrices are split by their outputs and results
are gathered: products and logits are the bits of one device on CPU. With `rules=[("residual",
None)]` o and down are split by what they sum over, and each device's sums are added: half of the
messages, other bits.

Axes need not divide. Parts are as large as the first, the last ones filled up; results that are
not split evenly, or between heads of keys, are gathered. Experts that do not divide are split
within each.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jax.sharding import AbstractMesh, Mesh

from jentropy.errors import InputError
from jentropy.formats import GROUP_INDEX, WHOLE, QuantizedTensor

Axes = tuple[str, ...]
Rules = Sequence[tuple[str, str | Axes | None]]

# Axes of matrices, rows and columns, by the end of their paths; the first that matches.
NAMES: Mapping[str, Axes] = {
    r"(embed_tokens|lm_head)\.weight": ("vocab", "embed"),
    r"self_attn\.q_proj\.weight": ("heads", "embed"),
    r"self_attn\.[kv]_proj\.weight": ("kv_heads", "embed"),
    r"self_attn\.o_proj\.weight": ("residual", "heads"),
    r"(gate|up)_proj\.weight": ("mlp", "embed"),
    r"down_proj\.weight": ("residual", "mlp"),
    r"\.weight": ("features", "embed"),
}
LOGICAL = ("expert", "vocab", "residual", "heads", "kv_heads", "mlp", "features", "embed")
DATA = ("data", "batch", "dp", "replica")  # what meshes call axes that split no weight
STAY_SPLIT = ("heads", "kv_heads", "mlp")  # results, where what takes them is split alike
LEAST_BLOCK = 32  # weights along a sum: shorter groups of a scale have no kernels


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """How one weight lies over a mesh, in the words of `pallas_kernels.ShardedTensor`.

    Attributes:
      axes: of the mesh.
      axis: of the weight; None: every device has all of it.
      count: parts.
      size: of each along the axis.
      shape: of the weight.
      gathered: whether results of products are gathered.
    """

    axes: Axes = ()
    axis: int | None = None
    count: int = 1
    size: int = 0
    shape: tuple[int, ...]
    gathered: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharding:
    """A mesh, and what its axes split.

    Attributes:
      mesh: the mesh.
      rules: from names of axes to axes of the mesh, the first first; those of the mesh follow.
      kv_heads: of the model.

    Raises:
      InputError: a rule of an axis that there is not.

    Example:
      >>> import jax
      >>> sharding = Sharding(mesh=jax.make_mesh((1,), ("model",)), kv_heads=2)
      >>> sharding.batch, dict(sharding.table)["heads"]
      ((), ('model',))
    """

    mesh: Mesh | AbstractMesh
    rules: Rules = ()
    kv_heads: int

    def __post_init__(self) -> None:
        for name, axes in self.rules:
            if name not in ("batch", *LOGICAL):
                known = ", ".join(("batch", *LOGICAL))
                raise InputError("rule of a mesh", expected=known, found=f"{name!r}")
            if set(_as_axes(axes)) - set(self.mesh.axis_names):
                names = ", ".join(map(str, self.mesh.axis_names))
                raise InputError(f"rule of {name}", expected=f"axes of {names}", found=f"{axes!r}")

    @property
    def table(self) -> list[tuple[str, Axes]]:
        """All rules in order."""
        names = tuple(self.mesh.axis_names)
        model = tuple(name for name in names if name not in DATA)
        own = [(name, _as_axes(axes)) for name, axes in self.rules]
        batch = ("batch", tuple(name for name in names if name in DATA))
        return [*own, batch, *((name, model) for name in LOGICAL if name != "embed")]

    @property
    def batch(self) -> Axes:
        """What splits sequences."""
        return next(axes for name, axes in self.table if name == "batch")

    def of(self, path: Sequence[Any], weight: Any, experts: int | None = None) -> Split | None:
        """How a weight lies; None of what every device has as it is: no matrix, or one that decodes
        only as a whole.

        Args:
          path: of its parameter.
          weight: an array or a `QuantizedTensor`.
          experts: of the stack that it is one of; None: it is alone, or the whole stack.
        """
        shape = (*weight.shape,) if experts is None else (experts, *weight.shape)
        names = _names(path)
        whole = isinstance(weight, QuantizedTensor) and not weight.number_format.is_elementwise
        if names is None or len(shape) not in (2, 3) or whole:
            return None
        names = ("expert", *names)[-len(shape) :]
        for name, axes in self.table:
            count = math.prod(self.mesh.shape[axis] for axis in axes)
            for axis in (i - len(shape) for i, one in enumerate(names) if one == name):
                if not axes:  # this axis is not split, whatever comes later
                    names = tuple("" if one == name else one for one in names)
                elif count > 1 and _divides(name, axis, count, shape, weight):
                    return self._split(name, axes, axis, count, shape, weight)
        return Split(shape=shape)

    def _split(
        self, name: str, axes: Axes, axis: int, count: int, shape: tuple[int, ...], weight: Any
    ) -> Split:
        length = shape[axis]
        size = -(-length // count)
        blocks = [] if axis < -len(weight.shape) else _blocks(weight, axis)
        if length % count or (axis == -1 and any(math.gcd(b, size) < LEAST_BLOCK for b in blocks)):
            step = math.lcm(1, *(math.gcd(block, LEAST_BLOCK) for block in blocks))
            size = -(-size // step) * step
        even = size * count == length and name in STAY_SPLIT
        stays = even and (name == "mlp" or not self.kv_heads % count)
        return Split(axes=axes, axis=axis, count=count, size=size, shape=shape, gathered=not stays)


def _as_axes(axes: str | Axes | None) -> Axes:
    return () if axes is None else (axes,) if isinstance(axes, str) else tuple(axes)


def _names(path: Sequence[Any]) -> Axes | None:
    """Names of a matrix's axes; None of what is no matrix."""
    told = ".".join(map(str, path))
    return next((n for end, n in NAMES.items() if re.search(f"{end}$", told)), None)


def _divides(name: str, axis: int, count: int, shape: tuple[int, ...], weight: Any) -> bool:
    """Whether parts can be had: experts evenly, columns not where their groups are scattered."""
    if name == "expert":
        return not shape[axis] % count
    scattered = isinstance(weight, QuantizedTensor) and GROUP_INDEX in weight.codes
    return axis != -1 or not scattered


def _blocks(weight: Any, axis: int) -> list[int]:
    """Lengths of the blocks along an axis that are longer than a weight."""
    if not isinstance(weight, QuantizedTensor):
        return []
    blocks = (p.blocks(len(weight.shape))[axis] for p in weight.number_format.parameters)
    return [block for block in blocks if block not in (1, WHOLE)]


def part(weight: Any, axis: int, first: int, size: int) -> Any:
    """Some rows, columns or matrices of a weight.

    Args:
      weight: an array of NumPy, or a `QuantizedTensor` of such.
      axis: of the weight, from the last.
      first: row, column or matrix, a multiple of `size`.
      size: of the part. What is beyond the weight is 0, its scales those of the last block.

    Example:
      >>> part(np.arange(5), -1, 4, 2).tolist()
      [4, 0]
    """
    if not isinstance(weight, QuantizedTensor):
        return _filled(weight, axis, first, size)
    made, codes, rank = weight.number_format, dict(weight.codes), len(weight.shape)
    for parameter in made.parameters:
        blocks = list(parameter.blocks(rank))
        if blocks[axis] == WHOLE:
            continue
        block = math.gcd(blocks[axis], size)  # that of the weight, or a divisor of it
        entries = np.arange(first, first + size, block)  # weights that they begin with
        array = codes[parameter.name]
        last = array.shape[axis] - 1
        codes[parameter.name] = np.take(array, np.minimum(entries // blocks[axis], last), axis=axis)
        blocks[axis] = block
        made = made.with_parameter(parameter.name, block=tuple(blocks))
    codes["code"] = _filled(codes["code"], axis, first, size)
    return QuantizedTensor(number_format=made, codes=codes)


def _filled(array: np.ndarray, axis: int, first: int, size: int) -> np.ndarray:
    where = [slice(None)] * array.ndim
    where[axis] = slice(first, first + size)
    own = array[tuple(where)]
    missing = [(0, 0)] * array.ndim
    missing[axis] = (0, size - own.shape[axis])
    return np.pad(own, missing) if missing[axis][1] else own
