"""What is in a compressed checkpoint, from its index alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jentropy.formats import GROUP_INDEX, RAW

from .checkpoint import Tensor
from .compressed import CompressedCheckpoint, model_entries, named_entries
from .index import Blocks, Entry
from .store import Store


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
    checkpoint = CompressedCheckpoint(Path(path), strict=False)
    store = checkpoint.store
    model = model_entries(store)
    arrays = _entries_of_arrays(store)
    rows, weights, joint = [], 0, 0.0
    for tensor in map(checkpoint.tensor, checkpoint.names()):
        row = _row(tensor, arrays)
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


def _entries_of_arrays(store: Store) -> dict[str, tuple[Entry, ...]]:
    """Entries that each stored array of the model is made of, by its name."""
    found: dict[str, tuple[Entry, ...]] = {name: (e,) for name, e in named_entries(store)}
    for part in (part for f in store.index.files if f.model for part in f.parts or ()):
        if isinstance(part, Blocks):
            found[part.name] = tuple(store.index.tensors[i] for i in part.fields)
    return found


def _row(tensor: Tensor, arrays: dict[str, tuple[Entry, ...]]) -> dict[str, Any]:
    size = max(1, math.prod(tensor.shape))
    parts = []
    bits, split, joint, is_wide = 0.0, 0.0, 0.0, False
    seen: set[str] = set()  # the fields of a block lie in one array
    for key, name in tensor.parts.items():
        if key == GROUP_INDEX or name in seen:  # indices are a tensor of their own
            continue
        seen.add(name)
        for entry in arrays[name]:
            header = entry.header
            part = key if len(arrays[name]) == 1 else entry.name.removeprefix(f"{name}.")
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
                    "stored_as": entry.name,
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
    }
