"""Bits of a weight: as they are coded, stored in codes, and resident."""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np

from jentropy import containers, entropy
from jentropy.formats import QuantizedTensor

OCTET = 8


def _tensors(tree: Any) -> list[QuantizedTensor]:
    return jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, QuantizedTensor))


def _weights(tree: Any) -> int:
    return max(1, sum(math.prod(one.shape) for one in _tensors(tree)))


def coded(tree: Any) -> float:
    """Bits of a weight that `compress` makes: payloads and tables of codes, scales, all.

    Args:
      tree: a `QuantizedTensor`, or a pytree of them.

    Returns:
      Bits for each weight; headers of tensors, names and shapes, are not counted.

    Example:
      >>> import numpy as np
      >>> from jentropy.formats import INT8_ROW, quantize
      >>> zeros = quantize(np.zeros((64, 64), np.float32), INT8_ROW)
      >>> coded(QuantizedTensor(number_format=INT8_ROW, codes=zeros)) < 0.3
      True
    """
    packed = jax.tree.leaves(containers.compress(tree), is_leaf=containers.is_compressed)
    size = sum(one.nbytes + len(one.header.coding.head) for one in packed)
    return OCTET * size / _weights(tree)


def estimated(tree: Any) -> float:
    """What `coded` will be, about: from histograms, with what their tables take.

    Args:
      tree: see `coded`.
    """
    total = 0.0
    for one in _tensors(tree):
        elements = {side.name: side.element for side in one.number_format.beside}
        for name, codes in jax.device_get(one.codes).items():
            element = elements.get(name, one.number_format.element)
            counts = entropy.measure(np.asarray(codes), element)
            total += counts.weights * counts.described_bits()
    return total / _weights(tree)


def stored(tree: Any) -> float:
    """Bits of a weight in codes of fixed length, as formats allocate them.

    Args:
      tree: see `coded`.

    Example:
      >>> import numpy as np
      >>> from jentropy.formats import MXFP4, quantize
      >>> codes = quantize(np.zeros((64, 64), np.float32), MXFP4)
      >>> stored(QuantizedTensor(number_format=MXFP4, codes=codes))
      4.25
    """
    bits = (
        one.number_format.allocated_bits(one.shape) * math.prod(one.shape) for one in _tensors(tree)
    )
    return sum(bits) / _weights(tree)


def resident(tree: Any) -> float:
    """Bits of a weight in device memory.

    Args:
      tree: of what `to_resident` gave.
    """
    tensors = jax.tree.leaves(tree, is_leaf=lambda node: hasattr(node, "nbytes"))
    weights = sum(math.prod(one.shape) for one in tensors)
    return OCTET * sum(one.nbytes for one in tensors) / max(1, weights)
