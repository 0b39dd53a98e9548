"""Dialect `plain`: every stored tensor is a weight of its dtype's format."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from jentropy import formats
from jentropy.checkpoints.checkpoint import Tensor
from jentropy.checkpoints.safetensors import StoredTensor

NAME = "plain"


def claims(config: Mapping[str, Any] | None, stored: Mapping[str, StoredTensor]) -> bool:
    """Any checkpoint."""
    return True


def tensors(
    config: Mapping[str, Any] | None, stored: Mapping[str, StoredTensor]
) -> Iterator[Tensor]:
    """A weight per stored tensor."""
    for name, tensor in stored.items():
        yield plain_tensor(name, tensor.values)


def plain_tensor(name: str, values: np.ndarray) -> Tensor:
    """An array as a weight."""
    return Tensor(
        name=name,
        format=formats.format_of_dtype(values.dtype),
        dialect=NAME,
        shape=tuple(values.shape),
        dtype=values.dtype,
        read=lambda: {"code": formats.codes_of(values)},
    )
