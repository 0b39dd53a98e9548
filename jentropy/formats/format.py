"""A number format as bit fields.

A *code* is the unsigned integer of an element's bits. Its *fields* (sign, exponent, mantissa) lie
in it from the most significant bit down. Splitting and joining are exact on every code: they move
bits and know nothing of values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """A run of bits of a code."""

    name: str  # one of the contract's field names: sign, exponent, mantissa, code
    bits: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """An element format.

    Invariants: the fields' bits add to the dtype's; `exponent`, where there is one, is a single
    field.
    """

    name: str
    dtype: np.dtype  # dtype of the values, whose bits are the codes
    fields: tuple[Field, ...]  # most significant first
    bias: int | None = None  # exponent bias of the values; None where they have no exponent

    def __post_init__(self) -> None:
        bits = 8 * np.dtype(self.dtype).itemsize
        if sum(f.bits for f in self.fields) != bits:
            raise ValueError(f"{self.name}: fields have {self.fields}, dtype has {bits} bits")

    @property
    def code_bits(self) -> int:
        """Bits of a code."""
        return sum(f.bits for f in self.fields)

    def shift(self, name: str) -> int:
        """Bits below a field."""
        at = [f.name for f in self.fields].index(name)
        return sum(f.bits for f in self.fields[at + 1 :])

    def field_bits(self, name: str) -> int:
        """Bits of a field; 0 if the format has none of that name."""
        return sum(f.bits for f in self.fields if f.name == name)

    def split(self, codes: UInt[Array, "*shape"]) -> dict[str, UInt[Array, "*shape"]]:
        """Fields of codes, each in the codes' dtype."""
        return {f.name: (codes >> self.shift(f.name)) & ((1 << f.bits) - 1) for f in self.fields}

    def join(self, fields: dict[str, UInt[Array, "*shape"]]) -> UInt[Array, "*shape"]:
        """Codes of fields: the inverse of `split`."""
        first, *rest = self.fields
        codes = fields[first.name] << self.shift(first.name)
        for f in rest:
            codes = codes | fields[f.name] << self.shift(f.name)
        return codes

    def values(self, codes: Any) -> Any:
        """Values of codes: a view of NumPy arrays, a bit cast of JAX arrays."""
        if isinstance(codes, np.ndarray):
            return codes.view(self.dtype)
        return jax.lax.bitcast_convert_type(codes, jnp.dtype(self.dtype))


def code_dtype(dtype: Any) -> np.dtype:
    """Unsigned integer dtype that holds the codes of a dtype; one of 16 bytes is its own."""
    dtype = np.dtype(dtype)
    return np.dtype(f"<u{dtype.itemsize}") if dtype.itemsize <= 8 else dtype


def codes_of(values: Any) -> Any:
    """Bits of a NumPy or JAX array as unsigned integers of its shape."""
    if isinstance(values, np.ndarray):
        return values.view(code_dtype(values.dtype))
    return jax.lax.bitcast_convert_type(values, jnp.dtype(code_dtype(values.dtype)))
