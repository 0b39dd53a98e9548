"""Codes and parameters of one weight together with what they mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeGuard, runtime_checkable

import jax
import numpy as np

from .dequantizing import dequantize
from .format import Format


@runtime_checkable
class Quantized(Protocol):
    """Anything that has codes of a known format: `QuantizedTensor`, a tensor of a checkpoint."""

    @property
    def number_format(self) -> Format:
        """What the codes mean."""

    @property
    def codes(self) -> Mapping[str, Any]:
        """Unsigned integers: `code` of the weight's shape, and each parameter by name."""


def is_quantized(node: Any) -> TypeGuard[Quantized]:
    """Whether an object is `Quantized`; its codes are not read."""
    return hasattr(type(node), "number_format") and hasattr(type(node), "codes")


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedTensor:
    """A quantised weight: a pytree node whose leaves are its codes and parameters.

    Invariants: `codes` holds what `quantize` returns and `dequantize` takes for `number_format`.
    In a tree that `compress` made its leaves are `CompressedTensor`.

    Example:
      >>> import jax.numpy as jnp
      >>> from jentropy.formats import MXFP8, QuantizedTensor, quantize
      >>> w = QuantizedTensor(number_format=MXFP8, codes=quantize(jnp.ones((2, 64)), MXFP8))
      >>> w.shape, float(w.dequantize()[0, 0])
      ((2, 64), 1.0)
    """

    codes: dict[str, Any]
    number_format: Format = field(metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight."""
        return tuple(self.codes["code"].shape)

    def dequantize(self, dtype: Any = np.float32) -> Any:
        """The weight's numbers, see `dequantize`."""
        return dequantize(self.number_format, self.codes, dtype)
