"""The entropy report: plain data, in the form that `jentropy analyze --json` writes.

Bits are per weight. A format's figures pool its tensors' histograms; a tensor's are its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jentropy.formats import RAW

from .magnitude import Magnitudes
from .weights import WeightCounts


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldReport:
    """One field of a format.

    Attributes:
      allocated_bits: stored, for each weight.
      entropy_bits: of them, those that carry information.

    Example:
      >>> FieldReport(allocated_bits=8.0, entropy_bits=2.6).entropy_bits
      2.6
    """

    allocated_bits: float
    entropy_bits: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FormatReport:
    """All tensors of one format, pooled.

    Example:
      >>> sign = FieldReport(allocated_bits=1.0, entropy_bits=1.0)
      >>> row = FormatReport(
      ...     weights=10,
      ...     allocated_bits=16.0,
      ...     entropy_bits=10.0,
      ...     joint_entropy_bits=None,
      ...     fields={"sign": sign},
      ... )
      >>> row.used_fraction
      0.625
    """

    weights: int
    allocated_bits: float
    entropy_bits: float  # sum of the fields' entropies
    joint_entropy_bits: float | None  # entropy of whole codes; None above 16 bits
    fields: dict[str, FieldReport]

    @property
    def used_fraction(self) -> float:
        """Share of the allocated bits that carries information."""
        return self.entropy_bits / self.allocated_bits if self.allocated_bits else 0.0


def counted(name: str, row: FormatReport) -> tuple[str, str]:
    """A format and how many weights it has, as a table says so; RAW numbers are no weights.

    Args:
      name: of the format.
      row: its figures.

    Returns:
      What the first column says, and the second.

    Example:
      >>> row = FormatReport(
      ...     weights=1234,
      ...     allocated_bits=16.0,
      ...     entropy_bits=10.6,
      ...     joint_entropy_bits=None,
      ...     fields={},
      ... )
      >>> counted("BF16", row), counted("RAW", row)
      (('BF16', '1,234'), ('RAW (1,234 numbers)', ''))
    """
    numbers = f"{row.weights:,}"
    return (f"{name} ({numbers} numbers)", "") if name == RAW else (name, numbers)


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorReport:
    """One tensor.

    Example:
      >>> report = TensorReport(
      ...     name="w",
      ...     format="BF16",
      ...     dialect="plain",
      ...     shape=(2, 3),
      ...     entropy_bits=10.6,
      ...     joint_entropy_bits=10.5,
      ... )
      >>> report.shape, report.note
      ((2, 3), '')
    """

    name: str
    format: str
    dialect: str
    shape: tuple[int, ...]
    entropy_bits: float
    joint_entropy_bits: float | None
    note: str = ""  # why it is RAW, if it may be more


@dataclass(frozen=True, slots=True, kw_only=True)
class EntropyReport:
    """What a checkpoint's bits carry.

    RAW tensors (indices, position ids, unknown dtypes) have a row among the formats but are no
    weights.

    Example:
      >>> ReportBuilder("nothing").build().headline
      '0 weights in 0 tensors'
    """

    source: str
    weights: int
    formats: dict[str, FormatReport]
    tensors: list[TensorReport]
    magnitude: dict[str, Any]
    notes: tuple[str, ...] = ()  # what could not be recognised

    @property
    def headline(self) -> str:
        """How many weights in how many tensors, and what is not counted."""
        raw = sum(tensor.format == RAW for tensor in self.tensors)
        text = f"{self.weights:,} weights in {len(self.tensors) - raw:,} tensors"
        return f"{text}, and {raw:,} RAW tensors (no weights)" if raw else text

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
                    **({"note": t.note} if t.note else {}),
                }
                for t in self.tensors
            ],
            "magnitude": self.magnitude,
            **({"notes": list(self.notes)} if self.notes else {}),
        }


class ReportBuilder:
    """Collects tensors, in any order, into a report.

    Example:
      >>> import numpy as np
      >>> from jentropy.entropy import measure_weight
      >>> from jentropy.formats import FORMATS
      >>> builder = ReportBuilder("test")
      >>> counts = measure_weight({"code": np.zeros(8, np.uint16)}, FORMATS["BF16"])
      >>> builder.add("w", "plain", (8,), counts)
      >>> builder.build().formats["BF16"].weights
      8
    """

    def __init__(self, source: str, notes: tuple[str, ...] = ()):
        self._source = source
        self._notes = notes
        self._pooled: dict[tuple, WeightCounts] = {}
        self._tensors: list[TensorReport] = []
        self._magnitudes = Magnitudes()

    def add(
        self,
        name: str,
        dialect: str,
        shape: tuple[int, ...],
        counts: WeightCounts,
        note: str = "",
    ) -> None:
        """Adds a tensor's counts."""
        key = counts.key
        self._pooled[key] = self._pooled[key] + counts if key in self._pooled else counts
        self._magnitudes.add(counts)
        self._tensors.append(
            TensorReport(
                name=name,
                format=counts.number_format.name,
                dialect=dialect,
                shape=shape,
                entropy_bits=counts.entropy_bits(),
                joint_entropy_bits=counts.joint_entropy_bits(),
                note=note,
            )
        )

    def build(self) -> EntropyReport:
        """The report of what was added."""
        names = dict.fromkeys(name for name, *_ in self._pooled)
        formats = {
            name: _pool([c for (n, *_), c in self._pooled.items() if n == name]) for name in names
        }
        return EntropyReport(
            source=self._source,
            weights=sum(f.weights for name, f in formats.items() if name != RAW),
            formats=formats,
            tensors=self._tensors,
            magnitude=self._magnitudes.to_json(),
            notes=self._notes,
        )


def _pool(parts: list[WeightCounts]) -> FormatReport:
    """One row of weights of one format, whose elements or parameters may differ in width."""
    weights = sum(c.weights for c in parts)

    def mean(values: list[float]) -> float:
        scale = [c.weights / weights if weights else 1 / len(parts) for c in parts]
        return sum(s * v for s, v in zip(scale, values, strict=True))

    allocated = [c.field_allocated_bits() for c in parts]
    entropies = [c.field_entropy_bits() for c in parts]
    joints = [c.joint_entropy_bits() for c in parts]
    names = dict.fromkeys(name for fields in allocated for name in fields)
    fields = {
        name: FieldReport(
            allocated_bits=mean([a.get(name, 0.0) for a in allocated]),
            entropy_bits=mean([e.get(name, 0.0) for e in entropies]),
        )
        for name in names
    }
    known = [j for j in joints if j is not None]
    return FormatReport(
        weights=weights,
        allocated_bits=sum(f.allocated_bits for f in fields.values()),
        entropy_bits=sum(f.entropy_bits for f in fields.values()),
        joint_entropy_bits=mean(known) if len(known) == len(joints) else None,
        fields=fields,
    )
