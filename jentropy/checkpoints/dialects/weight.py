"""A weight as a dialect finds it: which stored arrays make it up, and how they unpack.

`Part` constructors check dtype and shape at once, so that whatever contradicts the config is an
error that names both, before anything is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jentropy.checkpoints.contents import Contents, StoredArray
from jentropy.errors import InputError
from jentropy.formats import WHOLE, ElementFormat, Format, codes_of, raw_element, unpack

Shape = tuple[int, ...]
LARGEST = 1 << 40  # block size
# Endings of arrays that serve a quantisation, in any dialect, and are no weights of the model.
AUXILIARY = (
    "input_scale",
    "input_zero_point",
    "input_global_scale",
    "input_scale_ub",
    ".scale_input",
    ".qscale_act",
    ".comfy_quant",
    "scaled_fp8",
    "activation_scale",
    "act_pre_scale",
    "act_quant_scale",
    "output_scale",
    "output_zero_point",
    *(f".{name}_{kind}" for name in ("q", "k", "v", "kv") for kind in ("scale", "zero_point")),
    ".weight_shape",
    ".g_idx",
    ".weight_g_idx",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A stored array that is the codes, or a parameter, of a weight.

    Attributes:
      array: the stored array.
      element: the element format of its codes.
      unpack: from what is stored to unsigned integer codes in the weight's, or the grid's, shape.
    """

    array: StoredArray
    element: ElementFormat
    unpack: Callable[[np.ndarray], np.ndarray] = field(repr=False)

    def read(self) -> np.ndarray:
        """The codes."""
        return self.unpack(self.array.read())


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """A quantised weight.

    Invariants: `parts` has `code` and every parameter of `format`, and may have `group_index`.

    Attributes:
      settled: names of arrays that belong to it and add nothing to its values.
    """

    name: str
    format: Format
    shape: Shape
    parts: Mapping[str, Part]
    settled: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        needed = {"code", *(p.name for p in self.format.parameters)}
        if not needed <= self.parts.keys():
            raise ValueError(f"{self.name}: parts {sorted(self.parts)} of {sorted(needed)}")


class Missing(InputError):
    """A weight one of whose parts is not there."""


def find(contents: Contents, name: str, of: str) -> StoredArray:
    """A stored array that a weight needs.

    Raises:
      Missing: there is none of that name.
    """
    if name not in contents.arrays:
        raise Missing(
            f"no {name}",
            file=contents.source,
            tensor=of,
            expected=f"it, as {contents.declared_in or 'its other parts'} says",
            found="none",
        )
    return contents.arrays[name]


def require_shape(array: StoredArray, shapes: Iterable[Shape], why: str) -> None:
    """Raises InputError unless the array has one of the shapes.

    Args:
      why: what says so: "block size 128x128 of config.json, weight [256, 128]".
    """
    allowed = list(dict.fromkeys(shapes))
    if array.shape not in allowed:
        raise InputError(
            "shape",
            file=array.file,
            tensor=array.name,
            expected=f"{' or '.join(str(list(s)) for s in allowed)} by {why}",
            found=list(array.shape),
        )


def require_rank(array: StoredArray, rank: int) -> None:
    """Raises InputError unless the array has that many axes."""
    if len(array.shape) < rank:
        raise InputError(
            "quantised weight",
            file=array.file,
            tensor=array.name,
            expected=f"{rank} axes or more",
            found=list(array.shape),
        )


def require_matrix(array: StoredArray) -> None:
    """Raises InputError unless the array has two axes."""
    if len(array.shape) != 2:
        raise InputError(
            "shape",
            file=array.file,
            tensor=array.name,
            expected="two axes",
            found=list(array.shape),
        )


def require_dtype(array: StoredArray, dtypes: Iterable[Any], why: str) -> None:
    """Raises InputError unless the array has one of the dtypes."""
    allowed = [np.dtype(d) for d in dtypes]
    if array.dtype not in allowed:
        raise InputError(
            "dtype",
            file=array.file,
            tensor=array.name,
            expected=f"{' or '.join(map(str, allowed))} by {why}",
            found=array.dtype,
        )


def whole(array: StoredArray, element: ElementFormat, shape: Shape) -> Part:
    """A code per stored element, in the shape of the weight or of the parameter's grid."""
    if array.dtype.itemsize != element.dtype.itemsize:
        require_dtype(array, [element.dtype], f"format {element.name}")
    return Part(array=array, element=element, unpack=lambda values: codes_of(values).reshape(shape))


def packed(
    array: StoredArray, element: ElementFormat, *, axis: int = -1, count: int | None = None
) -> Part:
    """Several codes per stored integer, low bits first, along an axis."""
    return Part(
        array=array,
        element=element,
        unpack=lambda words: unpack(words, element.code_bits, axis=axis, count=count),
    )


def integer(config: Mapping[str, Any], key: str, contents: Contents, default: Any = None) -> int:
    """A positive integer of the declared quantisation.

    Raises:
      InputError: it is missing or no such integer.
    """
    value = config.get(key)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < LARGEST:
        raise InputError(
            f"{contents.declared_in}: {key}",
            file=contents.source,
            expected="an integer above 0",
            found=f"{value!r:.40}",
        )
    return value


def group_block(
    config: Mapping[str, Any], contents: Contents, key: str = "group_size", default: Any = None
) -> Shape:
    """Weights of a row that share parameters: groups of `group_size`, or the row if that is -1."""
    if config.get(key, default) == -1:
        return (WHOLE,)
    return (integer(config, key, contents, default),)


def block_size(contents: Contents, key: str, default: Any = None) -> Shape:
    """A pair of block sizes of the declared quantisation.

    Raises:
      InputError: it is missing or no pair of sizes.
    """
    return checked_block((contents.quantization or {}).get(key, default), key, contents)


def checked_block(value: Any, key: str, contents: Contents) -> Shape:
    """Two block sizes, rows first."""
    if (
        not isinstance(value, list)
        or len(value) != 2
        or not all(
            isinstance(n, int) and not isinstance(n, bool) and 0 < n < LARGEST for n in value
        )
    ):
        raise InputError(
            f"{contents.declared_in}: {key}",
            file=contents.source,
            expected="two sizes",
            found=f"{value!r:.40}",
        )
    return tuple(value)


def group_index(array: StoredArray, columns: int, groups: int) -> Part:
    """The group of each column, checked when it is read."""
    require_dtype(array, [np.int32, np.int64], "group indices")
    require_shape(array, [(columns,)], f"{columns} columns")

    def check(values: np.ndarray) -> np.ndarray:
        if values.size and not 0 <= values.min() <= values.max() < groups:
            raise InputError(
                "group indices",
                file=array.file,
                tensor=array.name,
                expected=f"0 to {groups - 1}",
                found=f"{values.min()} to {values.max()}",
            )
        return values

    return Part(array=array, element=raw_element(array.dtype), unpack=check)
