"""Blocks of GGUF's types: rows of bytes in which parameters and codes of weights lie side by side.

    type   bytes / weights   fields
    Q4_0   18 / 32    f16 d; 16 B: low halves are elements 0-15, high halves 16-31; (q - 8) d
    Q8_0   34 / 32    f16 d; 32 int8
    MXFP4  17 / 32    E8M0 e; 16 B E2M1, halves as in Q4_0
    Q4_K  144 / 256   f16 d, f16 dmin; 12 B of eight 6-bit scales s and mins m; 128 B: in every 32,
                      low halves are one sub-block of 32, high halves the next; q d s - dmin m
    Q6_K  210 / 256   128 B low 4 bits, 64 B high 2 bits; 16 int8 scales s; f16 d; (q - 32) d s

References:
  ggml's ggml-common.h and ggml-quants.c.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from jentropy import formats
from jentropy.formats import ElementFormat, Format, Parameter, Role

_HALF, _SUPER = 32, 256  # weights of a small block and of a super-block

Extract = Callable[[np.ndarray], np.ndarray]  # uint8[blocks, bytes] -> codes[blocks, n]


@dataclass(frozen=True, slots=True)
class Packing:
    """A type of block.

    Attributes:
      number_format: of its weights.
      weights, bytes: of a block.
      extract: how each array is got out of a block's bytes.
      fields: runs of bytes that hold symbols of one kind, by name, one after another: where the
        run ends, and the element format of its codes (None: bytes), for the archive.
    """

    number_format: Format
    weights: int
    bytes: int
    extract: dict[str, Extract]
    fields: dict[str, tuple[int, ElementFormat | None]]

    def split(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Fields of uint8[..., bytes of a row]: views [blocks, n] in the dtypes of their codes."""
        blocks = rows.reshape(-1, self.bytes)
        parts, at = {}, 0
        for name, (end, element) in self.fields.items():
            dtype = np.uint8 if element is None or element.code_bits < 8 else element.dtype
            parts[name] = blocks[:, at:end].view(dtype)
            at = end
        return parts


def _parameter(
    name: str,
    element: ElementFormat,
    block: int,
    role: Role = Role.SCALE,
    of: str | None = None,
) -> Parameter:
    field = "zero_point" if "min" in name else "scale"
    return Parameter(name=name, field=field, element=element, block=(block,), role=role, of=of)


def _f16(start: int) -> Extract:
    return lambda b: np.ascontiguousarray(b[:, start : start + 2]).view("<u2")


def _bytes(start: int, stop: int) -> Extract:
    return lambda b: b[:, start:stop]


def _halves(start: int, run: int) -> Extract:
    """Half bytes: of every `run` bytes first all low ones, then all high ones."""

    def extract(b: np.ndarray) -> np.ndarray:
        runs = b[:, start:].reshape(len(b), -1, run)
        return np.concatenate([runs & 0xF, runs >> 4], axis=-1).reshape(len(b), -1)

    return extract


def _six_bits(b: np.ndarray, *, mins: bool) -> np.ndarray:
    """The eight 6-bit scales, or mins, of Q4_K. The last four have their top bits elsewhere."""
    q = b[:, 4:16]
    low, high, rest = q[:, 0:4], q[:, 4:8], q[:, 8:12]
    first, top = (high & 63, high >> 6) if mins else (low & 63, low >> 6)
    return np.concatenate([first, (rest >> 4 if mins else rest & 0xF) | top << 4], axis=1)


def _q6_codes(b: np.ndarray) -> np.ndarray:
    low = b[:, :128].reshape(-1, 2, 2, 32)  # half of the block, run of 32 bytes
    high = b[:, 128:192].reshape(-1, 2, 1, 32)
    fours = np.concatenate([low & 0xF, low >> 4], axis=2)  # [blocks, 2, 4, 32]
    shifts = np.array([0, 2, 4, 6], np.uint8).reshape(1, 1, 4, 1)
    return (fours | (high >> shifts & 3) << 4).reshape(len(b), _SUPER)


_D16 = _parameter("scale", formats.FP16, _HALF)
PACKINGS = {
    "Q4_0": Packing(
        Format(name="INT4", element=formats.INT4_EXCESS8, parameters=(_D16,)),
        _HALF,
        18,
        {"scale": _f16(0), "code": _halves(2, 16)},
        {"scale": (2, formats.FP16), "code": (18, formats.INT4_EXCESS8)},
    ),
    "Q8_0": Packing(
        Format(name="INT8", element=formats.INT8, parameters=(_D16,)),
        _HALF,
        34,
        {"scale": _f16(0), "code": _bytes(2, 34)},
        {"scale": (2, formats.FP16), "code": (34, formats.INT8)},
    ),
    "MXFP4": Packing(
        formats.MXFP4,
        _HALF,
        17,
        {"scale": _bytes(0, 1), "code": _halves(1, 16)},
        {"scale": (1, formats.FP8_E8M0), "code": (17, formats.FP4_E2M1)},
    ),
    "Q4_K": Packing(
        Format(
            name="INT4",
            element=formats.UINT4,
            parameters=(
                _parameter("scale", formats.UINT6, _HALF),
                _parameter("super_scale", formats.FP16, _SUPER, of="scale"),
                _parameter("min", formats.UINT6, _HALF, Role.OFFSET),
                _parameter("super_min", formats.FP16, _SUPER, of="min"),
            ),
        ),
        _SUPER,
        144,
        {
            "super_scale": _f16(0),
            "super_min": _f16(2),
            "scale": lambda b: _six_bits(b, mins=False),
            "min": lambda b: _six_bits(b, mins=True),
            "code": _halves(16, 32),
        },
        {
            "super_scale": (2, formats.FP16),
            "super_min": (4, formats.FP16),
            "scales_and_mins": (16, None),
            "code": (144, formats.UINT4),
        },
    ),
    "Q6_K": Packing(
        Format(
            name="INT6",
            element=formats.INT6_EXCESS32,
            parameters=(
                _parameter("scale", formats.INT8, 16),
                _parameter("super_scale", formats.FP16, _SUPER, of="scale"),
            ),
        ),
        _SUPER,
        210,
        {"code": _q6_codes, "scale": _bytes(192, 208), "super_scale": _f16(208)},
        {
            "low": (128, formats.UINT4),
            "high": (192, None),
            "scale": (208, formats.INT8),
            "super_scale": (210, formats.FP16),
        },
    ),
}
