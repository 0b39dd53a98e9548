"""One dimension of bytes as the files of a zarr array: `zarr.json`, and one chunk, `c/0`.

The chunk is the bytes as they are and, as zarr's codec `sharding_indexed` wants it, an index of its
one inner chunk: u64 where that begins, u64 its bytes, u32 the CRC32C of both. A writer can add to
the chunk as long as that is not there.

References:
  https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed
"""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

CHUNK, METADATA = "c/0", "zarr.json"
INDEX_BYTES = 20
CASTAGNOLI = 0x82F63B78  # the polynomial, its lowest power in the highest bit


def metadata(size: int) -> bytes:
    """`zarr.json` of an array of so many bytes."""
    bytes_codec = {"name": "bytes"}
    index_codecs = [{"configuration": {"endian": "little"}, **bytes_codec}, {"name": "crc32c"}]
    shard = {"chunk_shape": [size], "codecs": [bytes_codec], "index_codecs": index_codecs}
    told = {
        "chunk_grid": {"configuration": {"chunk_shape": [size]}, "name": "regular"},
        "chunk_key_encoding": {"name": "default"},
        "codecs": [{"configuration": shard, "name": "sharding_indexed"}],
        "data_type": "uint8",
        "fill_value": 0,
        "node_type": "array",
        "shape": [size],
        "zarr_format": 3,
    }
    return json.dumps(told, separators=(",", ":")).encode()


def shard_index(size: int) -> bytes:
    """What follows the bytes of a chunk.

    Example:
      >>> shard_index(189383)[-4:].hex()
      '109d2347'
    """
    told = struct.pack("<QQ", 0, size)
    return told + struct.pack("<I", _crc32c(told))


def _crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (CASTAGNOLI if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def is_array(folder: Path, size: int) -> bool:
    """Whether a folder holds the files of an array of so many bytes, whatever those are."""
    try:
        with (folder / CHUNK).open("rb") as stream:
            whole = stream.seek(0, os.SEEK_END) == size + INDEX_BYTES
            stream.seek(size)
            ended = stream.read() == shard_index(size)
        return whole and ended and (folder / METADATA).read_bytes() == metadata(size)
    except OSError:
        return False
