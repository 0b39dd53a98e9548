"""jentropy: measure, remove and run without the bits that carry nothing in model weights.

report = jentropy.analyze(path_or_pytree)      entropy per field
packed = jentropy.compress(pytree)             lossless; jentropy.decompress gives it back
jentropy.save(path, packed)                    a compressed Orbax checkpoint; jentropy.load
w = jentropy.to_resident(packed)               on device, in the layout of its kernels
y = jentropy.matmul(x, w)                      from the compressed bytes
y = jentropy.grouped_matmul(x, w, group_sizes) of experts
model = jentropy.models.load(path)             a Flax NNX module
arrays = jentropy.quantize(x, jentropy.formats.MXFP4)   codes and scales; jentropy.dequantize
jentropy.quantization.RECIPES                  published quantisers, scored by coded bits
"""

import importlib
from typing import TYPE_CHECKING, Any

from jentropy import errors, formats, pallas_kernels
from jentropy.checkpoints import (
    Checkpoint,
    CompressedCheckpoint,
    Inspection,
    Salvaged,
    Tensor,
    Verified,
    analyze,
    compress_checkpoint,
    decompress_checkpoint,
    inspect,
    load,
    open_checkpoint,
    repair,
    salvage,
    save,
    verify,
)
from jentropy.containers import CompressedTensor, compress, decompress, decompress_slice
from jentropy.entropy import EntropyReport, FieldReport, FormatReport, TensorReport
from jentropy.errors import CheckError, InputError, JentropyError
from jentropy.formats import QuantizedTensor, dequantize, quantize
from jentropy.pallas_kernels import ResidentTensor, decode, grouped_matmul, matmul, to_resident
from jentropy.release import RELEASE

__version__ = RELEASE

# Flax, Matplotlib, Orbax and quantisers are imported when they are first used. A type checker sees
# the modules, and no function that would make any name an attribute.
if TYPE_CHECKING:
    from jentropy import models, quantization, report, training
else:

    def __getattr__(name: str) -> Any:
        if name in ("models", "quantization", "report", "training"):
            return importlib.import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:  # what is completed as one types
        return sorted({*globals(), *__all__})


__all__ = [
    "CheckError",
    "Checkpoint",
    "CompressedCheckpoint",
    "CompressedTensor",
    "EntropyReport",
    "FieldReport",
    "FormatReport",
    "InputError",
    "Inspection",
    "JentropyError",
    "QuantizedTensor",
    "ResidentTensor",
    "Salvaged",
    "Tensor",
    "TensorReport",
    "Verified",
    "analyze",
    "compress",
    "compress_checkpoint",
    "decode",
    "decompress",
    "decompress_checkpoint",
    "decompress_slice",
    "dequantize",
    "errors",
    "formats",
    "grouped_matmul",
    "inspect",
    "load",
    "matmul",
    "models",
    "open_checkpoint",
    "pallas_kernels",
    "quantization",
    "quantize",
    "repair",
    "report",
    "salvage",
    "save",
    "to_resident",
    "training",
    "verify",
]
