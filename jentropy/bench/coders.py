"""General and rival coders that are installed (extra `bench`), behind one interface."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np

Encode = Callable[[np.ndarray], bytes]
Decode = Callable[[bytes], Any]  # bytes, or what has their buffer
BF16 = np.dtype(ml_dtypes.bfloat16)


def others() -> Iterator[tuple[str, Encode, Decode]]:
    """Name, encoder of an array and decoder to its bytes; what is not installed is left out.

    "One thread" is said of those that would take more; the others have one.
    """
    for found in (_zipnn, _openzl, _zstd, _blosc2):
        try:
            yield from found()
        except ImportError:
            continue


def _zipnn() -> Iterator[tuple[str, Encode, Decode]]:
    import zipnn

    for name, threads in (("zipnn, one thread", 1), ("zipnn", None)):
        options = {} if threads is None else {"threads": threads}
        coder = zipnn.ZipNN(input_format="byte", bytearray_dtype="bfloat16", **options)

        def encode(values: np.ndarray, coder: Any = coder) -> bytes:
            return bytes(coder.compress(bytearray(values.tobytes())))

        def decode(part: bytes, coder: Any = coder) -> Any:
            return coder.decompress(bytearray(part))

        yield name, encode, decode


def _openzl() -> Iterator[tuple[str, Encode, Decode]]:
    import openzl.ext as zl

    def encode(values: np.ndarray) -> bytes:
        compressor = zl.Compressor()
        if values.dtype == BF16:
            graph = zl.nodes.BFloat16Deconstruct()(
                compressor,
                sign_frac=zl.graphs.Store()(compressor),
                exponent=zl.graphs.Entropy()(compressor),
            )
            given = zl.Input(zl.Type.Numeric, values.reshape(-1).view(np.uint16))
        else:
            graph = zl.graphs.Zstd()(compressor)
            given = zl.Input(zl.Type.Serial, values.reshape(-1).view(np.uint8))
        compressor.select_starting_graph(graph)
        context = zl.CCtx()
        context.ref_compressor(compressor)
        context.set_parameter(zl.CParam.FormatVersion, zl.MAX_FORMAT_VERSION)
        return context.compress([given])

    def decode(part: bytes) -> Any:
        (output,) = zl.DCtx().decompress(part)
        return np.ascontiguousarray(output.content.as_nparray()).view(np.uint8).data

    yield "openzl", encode, decode


def _zstd() -> Iterator[tuple[str, Encode, Decode]]:
    import zstandard

    compressor, decompressor = zstandard.ZstdCompressor(level=3), zstandard.ZstdDecompressor()
    yield "zstd -3", lambda values: compressor.compress(values.tobytes()), decompressor.decompress


def _blosc2() -> Iterator[tuple[str, Encode, Decode]]:
    import blosc2

    for name, threads in (("blosc2, one thread", 1), ("blosc2", blosc2.nthreads)):

        def encode(values: np.ndarray, threads: int = threads) -> bytes:
            return blosc2.compress2(
                np.ascontiguousarray(values).reshape(-1).view(np.uint8),
                codec=blosc2.Codec.ZSTD,
                clevel=1,
                filters=[blosc2.Filter.SHUFFLE],
                typesize=values.dtype.itemsize,
                nthreads=threads,
            )

        def decode(part: bytes, threads: int = threads) -> Any:
            return blosc2.decompress2(part, nthreads=threads)

        yield name, encode, decode
