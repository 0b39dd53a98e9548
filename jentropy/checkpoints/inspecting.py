"""What is in a compressed checkpoint, from its index alone."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jentropy.formats import GROUP_INDEX, RAW

from . import faults
from .archived import inside_archive
from .checkpoint import Tensor
from .compressed import CompressedCheckpoint
from .index import Entry
from .mirrors import located


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """Sizes against entropies.

    Attributes:
      weights: weights of the model; RAW tensors are none.
      archive_bytes: all that the model's tensors cost on disk: chunks, safetensors headers, index,
        Orbax metadata.
      raw_tensors, raw_bytes: RAW tensors, and what they cost of `archive_bytes`.
      other_files_bytes: what config, tokenizer and weights that are not the model's cost.
      per_tensor_joint_bits: joint entropy with one table per tensor, parameters of blocks included,
        bits per weight: the yardstick. The sum of the fields' entropies stands in for codes wider
        than 16 bits.
      tensors: a row per tensor of the model.
      notes: what could not be recognised.

    Example:
      >>> sizes = dict(archive_bytes=9, raw_tensors=1, raw_bytes=1, other_files_bytes=5)
      >>> Inspection(weights=8, per_tensor_joint_bits=7.5, tensors=(), **sizes).bits_per_weight
      8.0
    """

    weights: int
    archive_bytes: int
    raw_tensors: int
    raw_bytes: int
    other_files_bytes: int
    per_tensor_joint_bits: float
    tensors: tuple[dict[str, Any], ...]
    notes: tuple[str, ...] = ()

    @property
    def bits_per_weight(self) -> float | None:
        """Bits on disk of a weight, RAW tensors left out; None if there is no weight."""
        return 8 * (self.archive_bytes - self.raw_bytes) / self.weights if self.weights else None

    def to_json(self) -> dict[str, Any]:
        """The contract's form."""
        return {
            "weights": self.weights,
            "archive_bytes": self.archive_bytes,
            "raw_tensors": self.raw_tensors,
            "raw_bytes": self.raw_bytes,
            "other_files_bytes": self.other_files_bytes,
            "per_tensor_joint_bits": self.per_tensor_joint_bits,
            "bits_per_weight": self.bits_per_weight,
            "tensors": list(self.tensors),
            **({"notes": list(self.notes)} if self.notes else {}),
        }


@faults.told
def inspect(path: str | Path, *, strict: bool = False) -> Inspection:
    """Sizes and entropies of a compressed checkpoint; no weight is decoded.

    Args:
      path: a compressed checkpoint, or a file or folder in one (`DST/unet`).
      strict: see `open_checkpoint`.

    Returns:
      An `Inspection`; `.to_json()` gives plain data.

    Raises:
      InputError: not a compressed checkpoint, or a damaged index.

    Example:
      >>> import tempfile, numpy as np, jentropy
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     jentropy.save(f"{folder}/t", {"w": np.ones((64, 64), np.float16)})
      ...     inspection = jentropy.inspect(f"{folder}/t")
      ...     inspection.weights, inspection.tensors[0]["joint_entropy_bits"]
      (4096, 0.0)
    """
    source = located(path)
    place = inside_archive(source) or (source, "")
    checkpoint = CompressedCheckpoint(*place, strict=strict, lenient=not strict)
    store, arrays = checkpoint.store, checkpoint.arrays
    rows, weights, joint = [], 0, 0.0
    raw, known = set[str](), set[str]()  # names of arrays
    for tensor in map(checkpoint.tensor, checkpoint.names()):
        row = _row(tensor, arrays)
        rows.append(row)
        parts = (name for key, name in tensor.parts.items() if key != GROUP_INDEX)
        (raw if tensor.format == RAW else known).update(parts)
        if tensor.format != RAW:
            size = math.prod(tensor.shape)
            weights += size
            joint += size * _yardstick(row)
    raw_payload, payload = (_payload(arrays[n] for n in names) for names in (raw - known, arrays))
    headers = sum(
        store.index.blobs[f.blob].header.payload_bytes for f in checkpoint.archive.shown_files()
    )
    everything = (*store.index.tensors, *store.index.blobs)
    others = sum(e.header.payload_bytes for e in everything) - headers - payload
    if store.index.beside:  # in the index, which is deflated
        others += len(zlib.compress(json.dumps(dict(store.index.beside)).encode(), 9))
    on_disk = sum(p.stat().st_size for p in store.path.rglob("*") if p.is_file())
    # RAW tensors have their share of headers, index and metadata.
    overhead = on_disk - others - payload
    return Inspection(
        weights=weights,
        archive_bytes=on_disk - others,
        raw_tensors=sum(row["format"] == RAW for row in rows),
        raw_bytes=raw_payload + overhead * raw_payload // max(1, payload),
        other_files_bytes=others,
        per_tensor_joint_bits=joint / max(1, weights),
        tensors=tuple(rows),
        notes=checkpoint.notes,
    )


def _payload(arrays: Iterable[Mapping[str, Entry]]) -> int:
    entries = {id(e): e for array in arrays for e in array.values()}  # one may be two's
    return sum(entry.header.payload_bytes for entry in entries.values())


def _yardstick(row: dict[str, Any]) -> float:
    joint = row["joint_entropy_bits"]
    return row["entropy_bits"] if joint is None else joint


def _row(tensor: Tensor, arrays: Mapping[str, Mapping[str, Entry]]) -> dict[str, Any]:
    size = max(1, math.prod(tensor.shape))
    parts = []
    bits, split, joint, is_wide = 0.0, 0.0, 0.0, False
    seen: set[str] = set()  # the fields of a block lie in one array
    for key, name in tensor.parts.items():
        if key == GROUP_INDEX or name in seen:  # indices are a tensor of their own
            continue
        seen.add(name)
        entries = arrays[name]
        for stored_as, entry in entries.items():
            header = entry.header
            part = key if len(entries) == 1 else stored_as.removeprefix(f"{name}.")
            whole = header.joint_entropy_bits
            best = header.entropy_bits if whole is None else whole
            split += header.size / size * (header.entropy_bits if part == "code" else best)
            joint += header.size / size * best
            is_wide |= part == "code" and whole is None
            stored = 8 * header.payload_bytes / size
            bits += stored
            parts.append(
                {
                    "part": part,
                    "stored_as": stored_as,
                    "codec": header.coding.codec,
                    "bits_per_weight": stored,
                    "raw_bits_per_weight": 8 * header.raw_bytes / size,
                }
            )
    codes = [part for part in parts if part["part"] == "code"]
    return {
        "name": tensor.name,
        "format": tensor.format,
        "dialect": tensor.dialect,
        "codec": (codes or parts)[0]["codec"],
        "shape": list(tensor.shape),
        "bits_per_weight": bits,
        "entropy_bits": split,
        "joint_entropy_bits": None if is_wide else joint,
        "gap_bits": bits - joint,
        "parts": parts,
        **({"note": tensor.note} if tensor.note else {}),
    }
