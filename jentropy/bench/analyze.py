"""Suite `analyze`: a whole report, beside NumPy's bincount on the same arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import jentropy
from jentropy import formats

from .measure import Result, median_seconds


def run(source: str | Path) -> list[Result]:
    """MB/s of a checkpoint's 16-bit tensors, which are counted whole.

    Args:
      source: what `jentropy.open_checkpoint` takes.

    Returns:
      Rows of a report without contexts and with them, and one of NumPy's counting in one thread.
    """
    checkpoint = jentropy.open_checkpoint(source)
    arrays = {
        tensor.name: np.ascontiguousarray(tensor.values(codes))
        for tensor, codes in checkpoint.read_all()
        if tensor.dtype is not None and tensor.dtype.itemsize == 2 and tensor.format != formats.RAW
    }
    codes = [formats.codes_of(array).reshape(-1) for array in arrays.values()]
    megabytes = sum(array.nbytes for array in codes) / 1e6
    counts = {
        "jentropy, without contexts": lambda: jentropy.analyze(arrays, contexts=False),
        "jentropy, with contexts": lambda: jentropy.analyze(arrays),
        "numpy.bincount, one thread": lambda: [
            np.bincount(array, minlength=1 << 16) for array in codes
        ],
    }
    return [
        Result(name=name, figures={"mb_per_s": megabytes / median_seconds(count)})
        for name, count in counts.items()
    ]
