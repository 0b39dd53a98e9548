"""What is in a compressed checkpoint, from its index alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jentropy.formats import RAW

from .compressed import model_entries
from .index import Entry
from .store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """Sizes against entropies.

    Attributes:
      weights: elements of the model's tensors that are not RAW.
      archive_bytes: all that the weights cost on disk: chunks, safetensors headers, index, Orbax
        metadata.
      other_files_bytes: what config, tokenizer and safetensors files beside the model cost.
      per_tensor_joint_bits: joint entropy with one table per tensor, bits per weight: the
        yardstick. The sum of the fields' entropies stands in for codes wider than 16 bits.
      tensors: a row per weight tensor.
    """

    weights: int
    archive_bytes: int
    other_files_bytes: int
    per_tensor_joint_bits: float
    tensors: tuple[dict[str, Any], ...]

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
        }


def inspect(path: str | Path) -> Inspection:
    """Sizes and entropies of a compressed checkpoint; nothing is decoded.

    Raises:
      InputError: not a compressed checkpoint, or a damaged index.
    """
    store = Store(Path(path))
    model = model_entries(store)
    entries = [e for e in model if e.header.format != RAW]
    weights = sum(e.header.size for e in entries)
    joint = sum(e.header.size * _yardstick(e) for e in entries)
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
        tensors=tuple(_row(e) for e in model),
    )


def _yardstick(entry: Entry) -> float:
    joint = entry.header.joint_entropy_bits
    return entry.header.entropy_bits if joint is None else joint


def _row(entry: Entry) -> dict[str, Any]:
    header = entry.header
    bits = 8 * header.payload_bytes / max(1, header.size)
    return {
        "name": entry.name,
        "format": header.format,
        "codec": header.coding.codec,
        "shape": list(header.shape),
        "bits_per_weight": bits,
        "entropy_bits": header.entropy_bits,
        "joint_entropy_bits": header.joint_entropy_bits,
        "gap_bits": bits - _yardstick(entry),
    }
