"""Suite `formats`: a checkpoint's matrices in every number format, entropy against archive.

Every matrix is quantised by `jentropy.quantize`, its codes packed as checkpoints pack them, and
codes and scales archived each by itself. Bits are per weight, everything counted that a decoder
needs but the index.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np

import jentropy
from jentropy import entropy, formats
from jentropy.containers import coder
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
    """Allocated, entropy and archived bits per weight, and the relative error, of each format."""
    checkpoint = jentropy.open_checkpoint(source)
    matrices = {
        tensor.name: tensor.dequantize(np.float32, codes)
        for tensor, codes in checkpoint.read_all()
        if tensor.format != formats.RAW and len(tensor.shape) > 1
    }
    return [Result(name=name, figures=_row(matrices, fmt)) for name, fmt in ROWS.items()]


def _row(matrices: Mapping[str, np.ndarray], number_format: Format) -> dict[str, float]:
    weights = sum(values.size for values in matrices.values())
    allocated = split = joint = archived = error = 0.0
    for values in matrices.values():
        arrays = {
            key: np.asarray(codes)
            for key, codes in jentropy.quantize(jnp.asarray(values), number_format).items()
        }
        counts = entropy.measure_weight(arrays, number_format)
        allocated += values.size * counts.allocated_bits()
        split += values.size * counts.entropy_bits()
        whole = counts.joint_entropy_bits()
        joint += values.size * (counts.entropy_bits() if whole is None else whole)
        archived += 8 * sum(_archived_bytes(arrays, number_format))
        error += float(((formats.dequantize(number_format, arrays) - values) ** 2).sum())
    power = sum(float((values.astype(np.float64) ** 2).sum()) for values in matrices.values())
    return {
        "allocated_bits": allocated / weights,
        "entropy_bits": split / weights,
        "joint_entropy_bits": joint / weights,
        "archived_bits": archived / weights,
        "error_db": 10 * math.log10(error / power),
    }


def _archived_bytes(arrays: Mapping[str, np.ndarray], number_format: Format) -> Iterator[int]:
    elements = {p.name: p.element for p in number_format.parameters}
    for key, codes in arrays.items():
        element = elements.get(key, number_format.element)
        stored = formats.pack(codes, 4) if element.code_bits == 4 else codes
        draft = coder.draft(key, stored, element=element)
        chunks = [chunk for _, part in coder.encode([draft]) for chunk, _ in part]
        yield sum(chunk.bytes for chunk in chunks)
