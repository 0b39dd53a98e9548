"""Suite `analyze`: counting codes, beside NumPy's bincount on the same arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import jentropy
from jentropy import entropy, formats

from .measure import Result, median_seconds


def run(source: str | Path) -> list[Result]:
    """MB/s of a checkpoint's 16-bit tensors, which are counted whole.

    Args:
      source: what `jentropy.open_checkpoint` takes.

    Returns:
      A row of jentropy's and one of NumPy's.
    """
    checkpoint = jentropy.open_checkpoint(source)
    codes = [
        (tensor.number_format.element, codes["code"])
        for tensor, codes in checkpoint.read_all()
        if tensor.format != formats.RAW and codes["code"].itemsize == 2
    ]
    megabytes = sum(array.nbytes for _, array in codes) / 1e6
    counts = {
        "jentropy": lambda: [entropy.measure(array, element) for element, array in codes],
        "numpy.bincount": lambda: [
            np.bincount(array.reshape(-1), minlength=1 << 16) for _, array in codes
        ],
    }
    return [
        Result(name=name, figures={"mb_per_s": megabytes / median_seconds(count)})
        for name, count in counts.items()
    ]
