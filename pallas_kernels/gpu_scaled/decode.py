"""Dense arrays from scaled codes on Hopper."""

from __future__ import annotations

from typing import Any

from jaxtyping import Array, Shaped

from jentropy.pallas_kernels.hopper import dense
from jentropy.pallas_kernels.resident import ResidentTensor

from .numbers import Decoding


def decode(
    weight: ResidentTensor, dtype: Any, interpret: Any = False
) -> Shaped[Array, "rows columns"]:
    """The packed matrix, padded: the bits of `layout.decode`."""
    decoding = Decoding.of(weight, interpret)
    packed = dense.Packed(
        arrays=tuple(weight.arrays[name] for name in decoding.copied()),
        columns=decoding.columns(),
        rows=tuple(weight.arrays[name] for name in decoding.rows()),
        which=weight.which(),
        begin=decoding.begin,
        block=decoding.dense,
        name="decode_scaled",
    )
    return dense.decode(packed, dtype, interpret)
