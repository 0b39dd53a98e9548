"""General and rival coders that are installed (extra `bench`), behind one interface."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np

Encode = Callable[[np.ndarray], bytes]
Decode = Callable[[bytes], Any]  # bytes, or what has their buffer
Coders = Iterator[tuple[str, Encode, Decode]]
BF16 = np.dtype(ml_dtypes.bfloat16)


def others() -> Coders:
    """Name, encoder of an array and decoder to its bytes; what is not installed is left out.

    "One thread" is said of those that would take more; the others have one.
    """
    for coders in (_zipnn, _openzl, _zstd, _blosc2):
        try:
            yield from coders()
        except ImportError:
            continue


def _zipnn() -> Coders:
    import zipnn

    options = {"input_format": "byte", "bytearray_dtype": "bfloat16"}
    coders = {
        "zipnn, one thread": zipnn.ZipNN(**options, threads=1),
        "zipnn": zipnn.ZipNN(**options),
    }

    def encode(coder: Any, values: np.ndarray) -> bytes:
        return bytes(coder.compress(bytearray(values.tobytes())))

    def decode(coder: Any, part: bytes) -> Any:
        return coder.decompress(bytearray(part))

    for name, coder in coders.items():
        yield name, partial(encode, coder), partial(decode, coder)


def _openzl() -> Coders:
    import openzl.ext as zl

    def encode(values: np.ndarray) -> bytes:
        compressor, is_bf16 = zl.Compressor(), values.dtype == BF16
        if is_bf16:
            graph = zl.nodes.BFloat16Deconstruct()(
                compressor,
                sign_frac=zl.graphs.Store()(compressor),
                exponent=zl.graphs.Entropy()(compressor),
            )
        else:
            graph = zl.graphs.Zstd()(compressor)
        compressor.select_starting_graph(graph)
        context = zl.CCtx()
        context.ref_compressor(compressor)
        context.set_parameter(zl.CParam.FormatVersion, zl.MAX_FORMAT_VERSION)
        kind, dtype = (zl.Type.Numeric, np.uint16) if is_bf16 else (zl.Type.Serial, np.uint8)
        return context.compress([zl.Input(kind, values.reshape(-1).view(dtype))])

    def decode(part: bytes) -> Any:
        (output,) = zl.DCtx().decompress(part)
        return np.ascontiguousarray(output.content.as_nparray()).view(np.uint8).data

    yield "openzl", encode, decode


def _zstd() -> Coders:
    import zstandard

    compressor, decompressor = zstandard.ZstdCompressor(level=3), zstandard.ZstdDecompressor()
    yield "zstd -3", lambda values: compressor.compress(values.tobytes()), decompressor.decompress


def _blosc2() -> Coders:
    import blosc2

    def encode(values: np.ndarray, threads: int) -> bytes:
        return blosc2.compress2(
            np.ascontiguousarray(values).reshape(-1).view(np.uint8),
            codec=blosc2.Codec.ZSTD,
            clevel=1,
            filters=[blosc2.Filter.SHUFFLE],
            typesize=values.dtype.itemsize,
            nthreads=threads,
        )

    for name, threads in (("blosc2, one thread", 1), ("blosc2", blosc2.nthreads)):
        yield name, partial(encode, threads=threads), partial(blosc2.decompress2, nthreads=threads)
