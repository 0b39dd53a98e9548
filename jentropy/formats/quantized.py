"""A weight's codes and parameters together with what they mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import numpy as np

from jentropy.errors import CorruptError

from .dequantizing import GROUP_INDEX, dequantize
from .element import code_dtype
from .format import Format
from .transforms import TRANSFORMS


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedTensor:
    """A quantised weight: a pytree node whose leaves are its codes and parameters.

    Invariants, which `check` holds against what other people give (a tree is also mapped to things
    that are no arrays, so that making one checks nothing):

    * `codes` has `code` (of the weight's shape, unless `number_format.decoder` says another), every
      parameter of `number_format` by name, in the shape of its grid, the arrays of its steps, and
      perhaps `group_index`, the group of each column: what `quantize` returns and `dequantize`
      takes.
    * All but `group_index` are unsigned integers as wide as their elements' dtypes.
    * A leaf is an array of NumPy or JAX, one that is read when NumPy asks for it (on disk, from a
      checkpoint), a `CompressedTensor` (in a tree that `compress` made, or `load` opened), or a
      `jax.ShapeDtypeStruct`. It has `shape` and `dtype`.

    Attributes:
      codes: the leaves by name.
      number_format: what they mean.

    Example:
      >>> import jax.numpy as jnp
      >>> from jentropy.formats import MXFP8, QuantizedTensor, quantize
      >>> w = QuantizedTensor(number_format=MXFP8, codes=quantize(jnp.ones((2, 64)), MXFP8))
      >>> w, float(w.dequantize()[0, 0])
      (QuantizedTensor(MXFP8[2, 64]), 1.0)
    """

    codes: dict[str, Any]
    number_format: Format = field(metadata={"static": True})

    def __repr__(self) -> str:
        try:
            sizes = list(self.shape)
        except (AttributeError, KeyError, TypeError):  # a tree of something else than arrays
            sizes = []
        return f"QuantizedTensor({self.number_format.name}{sizes})"

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight."""
        return self.number_format.shape(tuple(self.codes["code"].shape))

    def in_memory(self) -> QuantizedTensor:
        """The same, its leaves on disk read."""
        return replace(self, codes={key: _in_memory(leaf) for key, leaf in self.codes.items()})

    def dequantize(self, dtype: Any = np.float32) -> Any:
        """The weight's numbers, see `dequantize`.

        Args:
          dtype: of the result.

        Returns:
          Numbers of the weight's shape, NumPy or JAX as the codes are.
        """
        return dequantize(self.number_format, self.in_memory().codes, dtype)

    def check(self) -> QuantizedTensor:
        """Itself, if its codes are what the format says.

        Raises:
          CorruptError: they are not.
        """
        arrays = {
            key: (tuple(getattr(leaf, "shape", ())), getattr(leaf, "dtype", None))
            for key, leaf in self.codes.items()
        }
        of_codes, _ = arrays.get("code", ((), None))
        if len(of_codes) < least_rank(self.number_format):
            raise CorruptError("codes", expected="the axes of a block", found=list(of_codes))
        shape = self.number_format.shape(of_codes)
        for step in self.number_format.transforms:
            if not TRANSFORMS[step.name].fits(step, *shape[-2:]):
                told = {own.name: list(own.shape) for own in step.arrays}
                raise CorruptError(
                    f"transform {step.name!r} of {self.number_format.name}",
                    expected=f"one of {list(shape[-2:])}",
                    found=f"{dict(step.settings)}, {told}",
                )
        expected = {
            key: (leaf.shape, leaf.dtype)
            for key, leaf in code_arrays(self.number_format, shape).items()
        }
        groups, dtype = arrays.pop(GROUP_INDEX, (shape[-1:], np.dtype(np.int32)))
        if arrays != expected or groups != shape[-1:] or np.dtype(dtype).kind not in "iu":
            raise CorruptError(
                f"codes of {self.number_format.name}", expected=_told(expected), found=_told(arrays)
            )
        return self


def least_rank(number_format: Format) -> int:
    """Axes that a weight of a format has at the least.

    Args:
      number_format: any.

    Returns:
      A number of axes.

    Example:
      >>> from jentropy.formats import FP8_BLOCK, MXFP4
      >>> least_rank(MXFP4), least_rank(FP8_BLOCK)
      (1, 2)
    """
    blocks = [len(p.block or ()) for p in number_format.parameters]
    return max([*blocks, 0 if number_format.is_elementwise else 2])


def _in_memory(leaf: Any) -> Any:
    """A leaf that is read only when NumPy asks for it, read."""
    is_lazy = hasattr(leaf, "__array__") and not isinstance(leaf, np.ndarray | jax.Array)
    return np.asarray(leaf) if is_lazy else leaf


def _told(arrays: Mapping[str, tuple[tuple[int, ...], Any]]) -> str:
    return ", ".join(f"{key} {dtype}{list(shape)}" for key, (shape, dtype) in arrays.items())


def code_arrays(number_format: Format, shape: tuple[int, ...]) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of the codes and parameters of a weight.

    Args:
      number_format: its format; the weight has the axes that its blocks and steps need.
      shape: of the weight.

    Returns:
      By name; of what is not always there (`group_index`) nothing.

    Example:
      >>> from jentropy.formats import MXFP4
      >>> code_arrays(MXFP4, (8, 64))["scale"]
      ShapeDtypeStruct(shape=(8, 2), dtype=uint8)
    """
    grids = {p.name: (p.grid(shape), p.element) for p in number_format.parameters}
    stack = shape[:-2]
    tables = {a.name: ((*stack, *a.shape), a.element) for a in number_format.side_arrays}
    code = number_format.code_shape(shape), number_format.element
    arrays = {"code": code, **grids, **tables}
    return {
        key: jax.ShapeDtypeStruct(grid, code_dtype(element.dtype))
        for key, (grid, element) in arrays.items()
    }
