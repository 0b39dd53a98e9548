"""What dialects are made of: the arrays of a weight, checked and put together.

`assemble` and the `require_*` check dtype and shape at once, so that whatever contradicts the
config is an error that names both, before anything is read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from jentropy.checkpoints.checkpoint import Tensor
from jentropy.checkpoints.contents import Contents, Shape, StoredArray, read_json
from jentropy.checkpoints.unpacking import (
    Field,
    Groups,
    Packed,
    Stored,
    Swizzled,
    Whole,
    stored_weight,
)
from jentropy.errors import InputError
from jentropy.formats import GROUP_INDEX, Format

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


class Missing(InputError):
    """A weight one of whose arrays is not there."""


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


def require_rank(array: StoredArray, least: int, most: int | None = None) -> None:
    """Raises InputError unless the array has that many axes."""
    if not least <= len(array.shape) <= (most or len(array.shape)):
        raise InputError(
            "quantised weight",
            file=array.file,
            tensor=array.name,
            expected=f"{least} axes" + ("" if most else " or more"),
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


def assemble(
    name: str,
    number_format: Format,
    shape: Shape,
    stored: Mapping[str, Stored],
    why: str,
    settled: tuple[StoredArray, ...] = (),
) -> Tensor:
    """A weight of its codes and parameters, unread.

    Args:
      stored: `code`, every parameter of the format by name, and perhaps `group_index`.
      why: what says that it is so: "groups of 32 in config.json".
      settled: arrays that belong to it and add nothing to its values.

    Raises:
      InputError: an array of another dtype or shape than such a weight has; it says why.
    """
    for parameter in number_format.parameters if GROUP_INDEX not in stored else ():
        pairs = zip(shape, parameter.blocks(len(shape)), strict=False)
        cut = [(size, block) for size, block in pairs if block > 1]
        if len(cut) == 1 and cut[0][0] % cut[0][1]:
            raise InputError(
                "groups",
                tensor=name,
                expected=f"some that divide a row of {cut[0][0]} by {why}",
                found=cut[0][1],
            )
    try:
        weight = stored_weight(number_format, shape, stored)
    except InputError as error:
        raise InputError(
            error.what,
            file=error.file,
            tensor=error.tensor or name,
            expected=f"{error.expected} by {why}, weight {list(shape)}",
            found=error.found,
        ) from error
    return Tensor(name=name, weight=weight, settled=settled)


__all__ = [
    "AUXILIARY",
    "Contents",
    "Field",
    "Groups",
    "Missing",
    "Packed",
    "Shape",
    "Stored",
    "StoredArray",
    "Swizzled",
    "Tensor",
    "Whole",
    "assemble",
    "find",
    "read_json",
    "require_dtype",
    "require_rank",
    "require_shape",
]
