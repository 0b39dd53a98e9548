"""Suite `analyze`: counting codes, beside NumPy's bincount on the same arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import jentropy
from jentropy import entropy, formats

from .measure import Result, median_seconds


def run(source: str | Path) -> list[Result]:
    """MB/s of a checkpoint's 16-bit tensors, which are counted whole."""
    checkpoint = jentropy.open_checkpoint(source)
    codes = [
        (tensor.number_format.element, codes["code"])
        for tensor, codes in checkpoint.read_all()
        if tensor.format != formats.RAW and codes["code"].itemsize == 2
    ]
    raw = sum(array.nbytes for _, array in codes)

    def ours() -> None:
        for element, array in codes:
            entropy.measure(array, element)

    def bincount() -> None:
        for _, array in codes:
            np.bincount(array.reshape(-1), minlength=1 << 16)

    rows = [("jentropy", median_seconds(ours)), ("numpy.bincount", median_seconds(bincount))]
    return [Result(name=name, figures={"mb_per_s": raw / 1e6 / t}) for name, t in rows]
