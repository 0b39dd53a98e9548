"""Suite `formats`: a checkpoint's matrices in every number format, entropy against archive.

Every matrix is quantised by `jentropy.quantize`, its codes packed as checkpoints pack them, and
codes and scales archived each by itself. Bits are per weight, everything counted that a decoder
needs but the index.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np

import jentropy
from jentropy import entropy, formats
from jentropy.containers import coder, drafting
from jentropy.formats import Format

from .measure import Result

ROWS = {
    "FP8_E4M3 per row": formats.FP8_ROW,
    "FP8_BLOCK 128x128": formats.FP8_BLOCK,
    "MXFP8": formats.MXFP8,
    "MXFP4": formats.MXFP4,
    "NVFP4": formats.NVFP4,
    "INT8 per row": formats.INT8_ROW,
    "INT4 g32": formats.INT4_GROUP.with_parameter("scale", block=(32,)),
    "INT4 g128": formats.INT4_GROUP,
    "INT4 g128 asymmetric": formats.ASYMMETRIC_INT4,
}


def run(source: str | Path) -> list[Result]:
    """Allocated, entropy and archived bits per weight, and the relative error, of each format.

    Args:
      source: what `jentropy.open_checkpoint` takes.

    Returns:
      A row for each of `ROWS`.
    """
    checkpoint = jentropy.open_checkpoint(source)
    matrices = [
        tensor.dequantize(np.float32, codes)
        for tensor, codes in checkpoint.read_all()
        if tensor.format != formats.RAW and len(tensor.shape) > 1
    ]
    return [
        Result(name=name, figures=_figures(matrices, number_format))
        for name, number_format in ROWS.items()
    ]


def _figures(matrices: Sequence[np.ndarray], number_format: Format) -> dict[str, float]:
    sums = [_sums(values, number_format) for values in matrices]
    totals = {name: sum(one[name] for one in sums) for name in sums[0]}
    weights, error, power = (totals.pop(name) for name in ("weights", "error", "power"))
    figures = {name: bits / weights for name, bits in totals.items()}
    return figures | {"error_db": 10 * math.log10(error / power)}


def _sums(values: np.ndarray, number_format: Format) -> dict[str, float]:
    """Bits of one matrix, and squares of its numbers and of the errors of their codes."""
    quantized = jentropy.quantize(jnp.asarray(values), number_format)
    codes = {name: np.asarray(array) for name, array in quantized.items()}
    counts = entropy.measure_weight(codes, number_format)
    split, joint = counts.entropy_bits(), counts.joint_entropy_bits()
    error = formats.dequantize(number_format, codes) - values
    return {
        "weights": values.size,
        "allocated_bits": values.size * counts.allocated_bits(),
        "entropy_bits": values.size * split,
        "joint_entropy_bits": values.size * (split if joint is None else joint),
        "archived_bits": 8 * sum(_archived_bytes(codes, number_format)),
        "error": float((error**2).sum()),
        "power": float((values.astype(np.float64) ** 2).sum()),
    }


def _archived_bytes(codes: Mapping[str, np.ndarray], number_format: Format) -> Iterator[int]:
    elements = {p.name: p.element for p in number_format.beside}
    for name, array in codes.items():
        element = elements.get(name, number_format.element)
        stored = formats.pack(array, 4) if element.code_bits == 4 else array
        draft = drafting.draft(name, stored, element=element)
        yield sum(chunk.bytes for _, part in coder.encode([draft]) for chunk, _ in part)
