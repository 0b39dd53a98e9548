"""What is in a compressed checkpoint, from its index alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jentropy.formats import GROUP_INDEX, RAW

from .checkpoint import Tensor
from .compressed import CompressedCheckpoint, model_entries
from .index import Entry


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """Sizes against entropies.

    Attributes:
      weights: weights of the model; RAW tensors are none.
      archive_bytes: all that the weights cost on disk: chunks, safetensors headers, index, Orbax
        metadata.
      other_files_bytes: what config, tokenizer and safetensors files beside the model cost.
      per_tensor_joint_bits: joint entropy with one table per tensor, parameters of blocks included,
        bits per weight: the yardstick. The sum of the fields' entropies stands in for codes wider
        than 16 bits.
      tensors: a row per tensor of the model.
      notes: what could not be recognised.
    """

    weights: int
    archive_bytes: int
    other_files_bytes: int
    per_tensor_joint_bits: float
    tensors: tuple[dict[str, Any], ...]
    notes: tuple[str, ...] = ()

    @property
    def bits_per_weight(self) -> float:
        """Bits on disk of a weight."""
        return 8 * self.archive_bytes / max(1, self.weights)

    def to_json(self) -> dict[str, Any]:
        """The contract's form."""
        return {
            "weights": self.weights,
            "archive_bytes": self.archive_bytes,
            "other_files_bytes": self.other_files_bytes,
            "per_tensor_joint_bits": self.per_tensor_joint_bits,
            "bits_per_weight": self.bits_per_weight,
            "tensors": list(self.tensors),
            **({"notes": list(self.notes)} if self.notes else {}),
        }


def inspect(path: str | Path) -> Inspection:
    """Sizes and entropies of a compressed checkpoint; no weight is decoded.

    Raises:
      InputError: not a compressed checkpoint, or a damaged index.
    """
    checkpoint = CompressedCheckpoint(Path(path))
    store = checkpoint.store
    model = model_entries(store)
    by_name = {entry.name: entry for entry in model}
    rows, weights, joint = [], 0, 0.0
    for tensor in map(checkpoint.tensor, checkpoint.names()):
        row = _row(tensor, by_name)
        rows.append(row)
        if tensor.format != RAW:
            size = math.prod(tensor.shape)
            weights += size
            joint += size * _yardstick(row)
    payloads = sum(e.header.payload_bytes for e in (*store.index.tensors, *store.index.blobs))
    headers = sum(
        store.index.blobs[f.blob].header.payload_bytes for f in store.index.files if f.model
    )
    others = payloads - headers - sum(e.header.payload_bytes for e in model)
    on_disk = sum(p.stat().st_size for p in store.path.rglob("*") if p.is_file())
    return Inspection(
        weights=weights,
        archive_bytes=on_disk - others,
        other_files_bytes=others,
        per_tensor_joint_bits=joint / max(1, weights),
        tensors=tuple(rows),
        notes=checkpoint.notes,
    )


def _yardstick(row: dict[str, Any]) -> float:
    joint = row["joint_entropy_bits"]
    return row["entropy_bits"] if joint is None else joint


def _row(tensor: Tensor, by_name: dict[str, Entry]) -> dict[str, Any]:
    size = max(1, math.prod(tensor.shape))
    parts = []
    bits, split, joint = 0.0, 0.0, 0.0
    for key, name in tensor.parts.items():
        if key == GROUP_INDEX:  # indices are a tensor of their own
            continue
        header = by_name[name].header
        whole = header.joint_entropy_bits
        best = header.entropy_bits if whole is None else whole
        split += header.size / size * (header.entropy_bits if key == "code" else best)
        joint += header.size / size * best
        stored = 8 * header.payload_bytes / size
        bits += stored
        parts.append(
            {
                "part": key,
                "stored_as": name,
                "codec": header.coding.codec,
                "bits_per_weight": stored,
                "raw_bits_per_weight": 8 * header.raw_bytes / size,
            }
        )
    code = by_name[tensor.parts["code"]].header
    return {
        "name": tensor.name,
        "format": tensor.format,
        "dialect": tensor.dialect,
        "codec": code.coding.codec,
        "shape": list(tensor.shape),
        "bits_per_weight": bits,
        "entropy_bits": split,
        "joint_entropy_bits": None if code.joint_entropy_bits is None else joint,
        "gap_bits": bits - joint,
        "parts": parts,
    }
