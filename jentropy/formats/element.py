"""An element format: the bits of one number.

A *code* is the unsigned integer of an element's bits. Its *fields* (sign, exponent, mantissa, or
one field `code` of integers) lie in it from the most significant bit down. Splitting and joining
are exact on every code: they move bits and know nothing of values.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt

from jentropy.errors import InputError, UnsupportedError

RAW = "RAW"  # name of elements that are no numbers
TABLE_BITS = 16  # codes up to this wide are decoded by a table
LARGEST_EXPONENT, LEAST_EXPONENT = 127, -149  # of powers of two that float32 has


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """A run of bits of a code.

    Example:
      >>> Field(name="mantissa", bits=7).bits
      7
    """

    name: str  # one of the contract's field names: sign, exponent, mantissa, code
    bits: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ElementFormat:
    """An element format.

    Invariants: the fields' bits are the dtype's, or fewer of unsigned integers, whose low bits they
    are; `exponent`, where there is one, is a single field. What a code means is said by the first
    of these that there is:

    * `table`, a number for every code;
    * `bias`, over unsigned integers: a minifloat of a sign, exponent and mantissa of any widths,
      finite in all of its codes, with subnormals and two zeros (FP6, 1/6/9);
    * the dtype, less `excess`.

    Raises:
      UnsupportedError: a code that its dtype would decode to something else: narrower than a dtype
        of signed numbers or floats, or of other fields; a minifloat beyond float32.

    Example:
      >>> from jentropy.formats import BF16
      >>> codes = np.array([0xBF80], np.uint16)  # -1
      >>> {name: int(part[0]) for name, part in BF16.split(codes).items()}
      {'sign': 1, 'exponent': 127, 'mantissa': 0}
      >>> BF16.decode(codes).tolist()
      [-1.0]
    """

    name: str
    dtype: np.dtype  # dtype of the values, whose bits are the codes
    fields: tuple[Field, ...]  # most significant first
    bias: int | None = None  # exponent bias of the values; None where they have no exponent
    excess: int = 0  # of integers: a value is its dtype's minus this
    table: tuple[float, ...] | None = None  # the number of every code, each a float32
    code_bits: int = field(init=False, repr=False, compare=False)  # bits of a code: of the fields

    def __post_init__(self) -> None:
        object.__setattr__(self, "code_bits", sum(f.bits for f in self.fields))
        dtype = np.dtype(self.dtype)
        # RAW codes are whole bytes, which no one decodes.
        bits = 8 * dtype.itemsize if self.name == RAW else jax.dtypes.itemsize_bits(dtype)
        if self.code_bits > bits:
            raise ValueError(f"{self.name}: fields have {self.fields}, dtype has {bits} bits")
        if self.code_bits < bits and not jnp.issubdtype(dtype, jnp.unsignedinteger):
            raise UnsupportedError(
                f"element format {self.name}: bits of its fields",
                expected=f"{bits}, as {dtype} has",
                found=self.code_bits,
                hint="codes are decoded by their dtype: take one as narrow as they are, or "
                "unsigned integers with an excess, a bias or a table",
            )
        if self.name != RAW and jnp.issubdtype(dtype, jnp.floating):
            self._check_float(dtype)
        if self.table is not None:
            self._check_table()
        elif self.is_minifloat:
            self._check_minifloat()

    def _check_float(self, dtype: np.dtype) -> None:
        """Raises unless the fields of a float are its dtype's."""
        told = jnp.finfo(dtype)
        found = [self.field_bits(name) for name in ("exponent", "mantissa")]
        if found != [told.nexp, told.nmant] or self.bias is None:
            raise UnsupportedError(
                f"element format {self.name}: exponent and mantissa",
                expected=f"{told.nexp} and {told.nmant} bits, as {dtype} has, and a bias",
                found=f"{found[0]} and {found[1]} bits, bias {self.bias}",
                hint="fields of a float's own are codes of unsigned integers with a bias",
            )

    def _check_table(self) -> None:
        table, dtype = self.table or (), np.dtype(self.dtype)
        with np.errstate(over="ignore"):
            exact = all(np.isfinite(x) and float(np.float32(x)) == x for x in table)
        if (
            self.code_bits > TABLE_BITS
            or len(table) != 1 << self.code_bits
            or not exact
            or self.bias is not None
            or not jnp.issubdtype(dtype, jnp.unsignedinteger)
        ):
            raise UnsupportedError(
                f"element format {self.name}: table",
                expected=f"{1 << min(self.code_bits, TABLE_BITS)} finite float32 numbers, of codes "
                f"of up to {TABLE_BITS} bits in unsigned integers, without a bias",
                found=f"{len(table)} of {self.code_bits} bits in {dtype}",
            )

    def _check_minifloat(self) -> None:
        widths = [self.field_bits(name) for name in ("sign", "exponent", "mantissa")]
        names = [f.name for f in self.fields if f.name != "sign"]
        assert self.bias is not None
        largest = (1 << widths[1]) - 1 - self.bias
        least = 1 - self.bias - widths[2]
        if (
            names not in (["exponent", "mantissa"], ["exponent"])
            or widths[0] not in (0, 1)
            or (widths[0] and self.fields[0].name != "sign")
            or self.code_bits > TABLE_BITS
            or self.excess
            or largest > LARGEST_EXPONENT
            or least < LEAST_EXPONENT
        ):
            raise UnsupportedError(
                f"element format {self.name}: a float of its own fields",
                expected="sign, exponent and mantissa from the highest bit down, up to "
                f"{TABLE_BITS} bits, no excess, numbers that float32 has",
                found=f"{[f'{f.name} {f.bits}' for f in self.fields]}, bias {self.bias}",
            )

    @property
    def is_minifloat(self) -> bool:
        """Whether the fields alone say what a code means."""
        dtype = np.dtype(self.dtype)
        unsigned = self.name != RAW and jnp.issubdtype(dtype, jnp.unsignedinteger)
        return bool(unsigned and self.bias is not None)

    def shift(self, name: str) -> int:
        """Bits below a field."""
        at = [f.name for f in self.fields].index(name)
        return sum(f.bits for f in self.fields[at + 1 :])

    def field_bits(self, name: str) -> int:
        """Bits of a field; 0 if the format has none of that name."""
        return sum(f.bits for f in self.fields if f.name == name)

    def split(self, codes: Any) -> dict[str, Any]:
        """Fields of codes (NumPy or JAX), each in the codes' dtype."""
        return {f.name: (codes >> self.shift(f.name)) & ((1 << f.bits) - 1) for f in self.fields}

    def join(
        self, fields: dict[str, UInt[Array | np.ndarray, "*shape"]]
    ) -> UInt[Array | np.ndarray, "*shape"]:
        """Codes of fields: the inverse of `split`."""
        first, *rest = self.fields
        codes = fields[first.name] << self.shift(first.name)
        for f in rest:
            codes = codes | fields[f.name] << self.shift(f.name)
        return codes

    def values(self, codes: Any) -> Any:
        """Codes that fill their dtype, in it: a view of NumPy arrays, a bit cast of JAX arrays."""
        if isinstance(codes, np.ndarray):
            return codes.view(self.dtype)
        return jax.lax.bitcast_convert_type(codes, jnp.dtype(self.dtype))

    def decode(self, codes: Any) -> Any:
        """Numbers of codes, exactly: NaN payloads and -0 too, subnormals on every device.

        Codes of up to 16 bits are looked up in a table of float32 bit patterns, so that no
        arithmetic touches them: XLA flushes subnormals on CPU and TPU.

        Args:
          codes: NumPy or JAX unsigned integers of any shape.

        Returns:
          float32 of the codes' shape, NumPy or JAX as they are.

        Raises:
          InputError: NumPy codes beyond the element's bits.
        """
        if self.code_bits > TABLE_BITS:
            return self.values(codes)
        table = _float32_bits(self)
        if isinstance(codes, np.ndarray):
            try:
                return table[codes].view(np.float32)
            except IndexError:
                raise InputError(
                    f"codes of {self.name}", expected=f"below {table.size}", found=int(codes.max())
                ) from None
        bits = jnp.asarray(table).at[codes.astype(jnp.int32)].get(mode="clip")
        return jax.lax.bitcast_convert_type(bits, jnp.float32)


@lru_cache
def _float32_bits(element: ElementFormat) -> np.ndarray:
    """Float32 bit pattern of every code. uint32[2^code_bits]."""
    if element.name == RAW:
        raise ValueError("RAW codes have no values")
    itemsize = element.dtype.itemsize
    codes = np.arange(1 << element.code_bits, dtype=f"u{itemsize}")
    if element.table is not None:
        return np.array(element.table, np.float32).view(np.uint32)
    if element.is_minifloat:
        return _minifloats(element, codes.astype(np.int64)).view(np.uint32)
    with np.errstate(invalid="ignore"):  # signalling NaNs
        numbers = codes.view(element.dtype).astype(np.float32) - np.float32(element.excess)
    if element.bias is not None and element.dtype.itemsize == 2:
        # NumPy makes NaNs quiet: shift the payload instead.
        fields = element.split(codes.astype(np.uint32))
        shift = 23 - element.field_bits("mantissa")
        payload = fields["sign"] << 31 | 0xFF << 23 | fields["mantissa"] << shift
        bits = numbers.view(np.uint32)
        return np.where(np.isnan(numbers), payload, bits).astype(np.uint32)
    return numbers.view(np.uint32)


def _minifloats(element: ElementFormat, codes: np.ndarray) -> np.ndarray:
    """Numbers of a minifloat's codes: (-1)^sign 2^(exponent - bias) (1 + mantissa / 2^bits)."""
    fields, zeros = element.split(codes), np.zeros_like(codes)
    exponent, mantissa = fields["exponent"], fields.get("mantissa", zeros)
    assert element.bias is not None
    significand = mantissa / (1 << element.field_bits("mantissa")) + (exponent > 0)
    magnitude = np.ldexp(significand, np.maximum(exponent, 1) - element.bias)
    return np.where(fields.get("sign", zeros) > 0, -magnitude, magnitude).astype(np.float32)


@lru_cache
def raw_element(dtype: Any) -> ElementFormat:
    """An element of one field, `code`, as wide as the dtype. It has no values of its own.

    Args:
      dtype: any that is not of objects.

    Returns:
      The same object for the same dtype.

    Example:
      >>> raw_element(np.dtype(np.int64)).code_bits
      64
    """
    dtype = np.dtype(dtype)
    field = Field(name="code", bits=8 * dtype.itemsize)
    return ElementFormat(name=RAW, dtype=dtype, fields=(field,))


def code_dtype(dtype: Any) -> np.dtype:
    """Unsigned integer dtype that holds the codes of a dtype; one of 16 bytes is its own.

    Args:
      dtype: of values.

    Returns:
      A NumPy dtype of as many bytes.

    Example:
      >>> code_dtype(np.float32).name, code_dtype(np.complex128).name
      ('uint32', 'complex128')
    """
    dtype = np.dtype(dtype)
    return np.dtype(f"<u{dtype.itemsize}") if dtype.itemsize <= 8 else dtype


def codes_of(values: Any) -> Any:
    """Bits of a NumPy or JAX array as unsigned integers of its shape.

    Args:
      values: an array of any dtype and shape.

    Returns:
      The same kind of array, of `code_dtype(values.dtype)`; NumPy's is a view.

    Example:
      >>> hex(int(codes_of(np.float16([1.0]))[0]))
      '0x3c00'
    """
    if isinstance(values, np.ndarray):
        return values.view(code_dtype(values.dtype))
    return jax.lax.bitcast_convert_type(values, jnp.dtype(code_dtype(values.dtype)))
