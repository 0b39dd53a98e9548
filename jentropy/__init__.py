"""jentropy: measure, remove and run without the bits that carry nothing in model weights.

report = jentropy.analyze(path_or_pytree)      entropy per field
packed = jentropy.compress(pytree)             lossless; jentropy.decompress gives it back
jentropy.save(path, packed)                    a compressed Orbax checkpoint; jentropy.load
w = jentropy.to_resident(packed)               on device, in the layout of its kernels
y = jentropy.matmul(x, w)                      from the compressed bytes
model = jentropy.models.load(path)             a Flax NNX module
arrays = jentropy.quantize(x, jentropy.formats.MXFP4)   codes and scales; jentropy.dequantize
"""

import importlib
from typing import Any

from jentropy.checkpoints import (
    analyze,
    compress_checkpoint,
    decompress_checkpoint,
    inspect,
    load,
    open_checkpoint,
    save,
    verify,
)
from jentropy.containers import CompressedTensor, compress, decompress, decompress_slice
from jentropy.entropy import EntropyReport
from jentropy.errors import InputError, JentropyError
from jentropy.formats import dequantize, quantize
from jentropy.pallas_kernels import ResidentTensor, decode, matmul, to_resident

__version__ = "0.1.0"

_LAZY = ("models", "report")  # import Flax and Matplotlib when they are first used


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "CompressedTensor",
    "EntropyReport",
    "InputError",
    "JentropyError",
    "ResidentTensor",
    "analyze",
    "compress",
    "compress_checkpoint",
    "decode",
    "decompress",
    "decompress_checkpoint",
    "decompress_slice",
    "dequantize",
    "inspect",
    "load",
    "matmul",
    "open_checkpoint",
    "quantize",
    "save",
    "to_resident",
    "verify",
]
