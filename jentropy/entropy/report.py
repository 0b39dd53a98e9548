"""The entropy report: plain data, in the form that `jentropy analyze --json` writes.

Bits are per weight. A format's figures pool its tensors' histograms; a tensor's are its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jentropy.formats import RAW

from .magnitude import Magnitudes
from .statistics import Counts


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldReport:
    """One field of a format."""

    allocated_bits: float
    entropy_bits: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FormatReport:
    """All tensors of one format, pooled."""

    weights: int
    allocated_bits: float
    entropy_bits: float  # sum of the fields' entropies
    joint_entropy_bits: float | None  # entropy of whole codes; None above 16 bits
    fields: dict[str, FieldReport]

    @property
    def used_fraction(self) -> float:
        """Share of the allocated bits that carries information."""
        return self.entropy_bits / self.allocated_bits if self.allocated_bits else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorReport:
    """One tensor."""

    name: str
    format: str
    dialect: str
    shape: tuple[int, ...]
    entropy_bits: float
    joint_entropy_bits: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EntropyReport:
    """What a checkpoint's bits carry.

    RAW tensors (indices, position ids, unknown dtypes) have a row among the formats but are no
    weights.
    """

    source: str
    weights: int
    formats: dict[str, FormatReport]
    tensors: list[TensorReport]
    magnitude: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """The contract's form."""
        return {
            "source": self.source,
            "weights": self.weights,
            "formats": {
                name: {
                    "weights": f.weights,
                    "allocated_bits": f.allocated_bits,
                    "entropy_bits": f.entropy_bits,
                    "joint_entropy_bits": f.joint_entropy_bits,
                    "fields": {
                        key: {
                            "allocated_bits": field.allocated_bits,
                            "entropy_bits": field.entropy_bits,
                        }
                        for key, field in f.fields.items()
                    },
                    "used_fraction": f.used_fraction,
                }
                for name, f in self.formats.items()
            },
            "tensors": [
                {
                    "name": t.name,
                    "format": t.format,
                    "dialect": t.dialect,
                    "shape": list(t.shape),
                    "entropy_bits": t.entropy_bits,
                    "joint_entropy_bits": t.joint_entropy_bits,
                }
                for t in self.tensors
            ],
            "magnitude": self.magnitude,
        }


class ReportBuilder:
    """Collects tensors, in any order, into a report."""

    def __init__(self, source: str):
        self._source = source
        self._pooled: dict[tuple[str, int], Counts] = {}
        self._tensors: list[TensorReport] = []
        self._magnitudes = Magnitudes()

    def add(self, name: str, dialect: str, shape: tuple[int, ...], counts: Counts) -> None:
        """Adds a tensor's counts."""
        key = (counts.format.name, counts.format.code_bits)
        self._pooled[key] = self._pooled[key] + counts if key in self._pooled else counts
        self._magnitudes.add(counts)
        self._tensors.append(
            TensorReport(
                name=name,
                format=counts.format.name,
                dialect=dialect,
                shape=shape,
                entropy_bits=counts.entropy_bits(),
                joint_entropy_bits=counts.joint_entropy_bits(),
            )
        )

    def build(self) -> EntropyReport:
        """The report of what was added."""
        names = dict.fromkeys(name for name, _ in self._pooled)
        formats = {
            name: _pool([c for (n, _), c in self._pooled.items() if n == name]) for name in names
        }
        return EntropyReport(
            source=self._source,
            weights=sum(f.weights for name, f in formats.items() if name != RAW),
            formats=formats,
            tensors=self._tensors,
            magnitude=self._magnitudes.to_json(),
        )


def _pool(parts: list[Counts]) -> FormatReport:
    """One row of counts of equal fields; RAW may hold codes of several widths."""
    weights = sum(c.weights for c in parts)

    def mean(values: list[float]) -> float:
        scale = [c.weights / weights if weights else 1 / len(parts) for c in parts]
        return sum(s * v for s, v in zip(scale, values, strict=True))

    entropies = [c.field_entropy_bits() for c in parts]
    joints = [c.joint_entropy_bits() for c in parts]
    fields = {
        f.name: FieldReport(
            allocated_bits=mean([c.format.field_bits(f.name) for c in parts]),
            entropy_bits=mean([e[f.name] for e in entropies]),
        )
        for f in parts[0].format.fields
    }
    known = [j for j in joints if j is not None]
    return FormatReport(
        weights=weights,
        allocated_bits=mean([c.format.code_bits for c in parts]),
        entropy_bits=mean([sum(e.values()) for e in entropies]),
        joint_entropy_bits=mean(known) if len(known) == len(joints) else None,
        fields=fields,
    )
