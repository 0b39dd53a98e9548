"""The entropy report: plain data, in the form that `jentropy analyze --json` writes.

Bits are per weight. Figures of a format, or of a role in it, pool its tensors' histograms; a
tensor's are its own. RAW tensors (indices, position ids, unknown dtypes) have a row among the
formats, and are in nothing else: they are no weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jentropy.formats import RAW

from .contexts import SAMPLE, SEED, Gain
from .gains import Savings
from .magnitude import Magnitudes
from .reference import REFERENCE, distance
from .roles import Role


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

    def to_json(self) -> dict[str, float]:
        """Plain data."""
        return {"allocated_bits": self.allocated_bits, "entropy_bits": self.entropy_bits}


@dataclass(frozen=True, slots=True, kw_only=True)
class PooledReport:
    """Tensors that are pooled.

    Attributes:
      weights, tensors: how many.
      allocated_bits: stored.
      entropy_bits: sum of the fields' entropies.
      joint_entropy_bits: entropy of whole codes; None above 16 bits.
      fields: by name.
      magnitudes: of the weights; None of RAW ones.
      contexts: what contexts save, mean over the tensors that were looked at, by context.
      savings: what coding saves; None of RAW ones.

    Example:
      >>> sign = FieldReport(allocated_bits=1.0, entropy_bits=1.0)
      >>> row = PooledReport(
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
    entropy_bits: float
    joint_entropy_bits: float | None
    fields: Mapping[str, FieldReport]
    tensors: int = 0
    magnitudes: Magnitudes | None = None
    contexts: Mapping[str, Gain] = field(default_factory=dict)
    savings: Savings | None = None

    @property
    def used_fraction(self) -> float:
        """Share of the allocated bits that carries information."""
        return self.entropy_bits / self.allocated_bits if self.allocated_bits else 0.0

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "weights": self.weights,
            "tensors": self.tensors,
            "allocated_bits": self.allocated_bits,
            "entropy_bits": self.entropy_bits,
            "joint_entropy_bits": self.joint_entropy_bits,
            "fields": {name: one.to_json() for name, one in self.fields.items()},
            "used_fraction": self.used_fraction,
            **({"magnitude": self.magnitudes.to_json()} if self.magnitudes else {}),
            **_contexts_json(self.contexts),
            **({"savings": self.savings.to_json()} if self.savings else {}),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class FormatReport(PooledReport):
    """All tensors of one format.

    Attributes:
      roles: those of one role, by its name, in the order of `roles.NAMES`.

    Example:
      >>> import numpy as np, jentropy
      >>> report = jentropy.analyze({"q_proj": np.ones((4, 4), np.float16)})
      >>> list(report.formats["FP16"].roles)
      ['q']
    """

    roles: Mapping[str, PooledReport] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        roles = {name: one.to_json() for name, one in self.roles.items()}
        return {**PooledReport.to_json(self), **({"roles": roles} if roles else {})}


def counted(name: str, row: PooledReport) -> tuple[str, str]:
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

    Attributes:
      name, format, dialect, shape: of it.
      allocated_bits, entropy_bits, joint_entropy_bits: as of `PooledReport`.
      described_bits: of its codes and all that a decoder has to know of them.
      fields: entropy of each field.
      role: what it does; None of RAW ones.
      contexts: what contexts save, as of `PooledReport`; empty of one that was not looked at.
      note: why it is RAW, if it may be more.

    Example:
      >>> report = TensorReport(
      ...     name="w",
      ...     format="BF16",
      ...     dialect="plain",
      ...     shape=(2, 3),
      ...     allocated_bits=16.0,
      ...     entropy_bits=10.6,
      ...     joint_entropy_bits=10.5,
      ...     described_bits=10.5,
      ... )
      >>> report.weights, round(report.wasted_bytes, 3)
      (6, 4.125)
    """

    name: str
    format: str
    dialect: str
    shape: tuple[int, ...]
    allocated_bits: float
    entropy_bits: float
    joint_entropy_bits: float | None
    described_bits: float
    fields: Mapping[str, float] = field(default_factory=dict)
    role: Role | None = None
    contexts: Mapping[str, Gain] = field(default_factory=dict)
    note: str = ""

    @property
    def weights(self) -> int:
        """How many it has."""
        return math.prod(self.shape)

    @property
    def wasted_bytes(self) -> float:
        """Stored, without information."""
        return self.weights * max(0.0, self.allocated_bits - self.described_bits) / 8

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        role = self.role
        return {
            "name": self.name,
            "format": self.format,
            "dialect": self.dialect,
            "shape": list(self.shape),
            "allocated_bits": self.allocated_bits,
            "entropy_bits": self.entropy_bits,
            "joint_entropy_bits": self.joint_entropy_bits,
            "described_bits": self.described_bits,
            "fields": dict(self.fields),
            **({} if role is None else role.to_json()),
            **_contexts_json(self.contexts),
            **({"note": self.note} if self.note else {}),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a model's precision came from.

    Attributes:
      kind: "native" (trained in it, or never quantised), "QAT" (trained with quantisation), "PTQ"
        (quantised after training) or "unknown".
      told: what says so.

    Example:
      >>> Origin(kind="PTQ", told="config.json: quant_method awq").kind
      'PTQ'
    """

    kind: str = "unknown"
    told: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EntropyReport:
    """What a checkpoint's bits carry.

    Attributes:
      source: what was analysed.
      formats: by name.
      tensors: in the order of the checkpoint.
      magnitudes: of all weights.
      contexts: what contexts save, mean over all tensors that were looked at.
      savings: what coding saves, all in all.
      origin: of the precision.
      notes: what could not be recognised.

    Example:
      >>> import jentropy, numpy as np
      >>> jentropy.analyze({"w": np.zeros((2, 3), np.float16)})
      EntropyReport(pytree, 6 weights in 1 tensors, FP16: 0.00 of 16 bits)
    """

    source: str
    formats: Mapping[str, FormatReport]
    tensors: list[TensorReport]
    magnitudes: Magnitudes
    contexts: Mapping[str, Gain] = field(default_factory=dict)
    savings: Savings
    origin: Origin = field(default_factory=Origin)
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        bits = (
            f"{name}: {one.entropy_bits:.2f} of {one.allocated_bits:g} bits"
            for name, one in self.formats.items()
        )
        return f"EntropyReport({', '.join((self.source, self.headline, *bits))})"

    @property
    def weights(self) -> int:
        """How many there are."""
        return sum(one.weights for name, one in self.formats.items() if name != RAW)

    @property
    def magnitude(self) -> dict[str, Any]:
        """The contract's figures of all weights' magnitudes."""
        return self.magnitudes.to_json()

    @property
    def distance(self) -> float | None:
        """Largest between its normalised cumulative curve and the reference; None without one."""
        return distance(self.magnitudes.cumulative(), REFERENCE)

    @property
    def headline(self) -> str:
        """How many weights in how many tensors, and what is not counted."""
        raw = sum(tensor.format == RAW for tensor in self.tensors)
        text = f"{self.weights:,} weights in {len(self.tensors) - raw:,} tensors"
        return f"{text}, and {raw:,} RAW tensors (no weights)" if raw else text

    def to_json(self) -> dict[str, Any]:
        """The contract's form; docs/entropy-report.md says what each key means."""
        return {
            "source": self.source,
            "weights": self.weights,
            "formats": {name: one.to_json() for name, one in self.formats.items()},
            "tensors": [tensor.to_json() for tensor in self.tensors],
            "magnitude": self.magnitude,
            "distance": self.distance,
            **_contexts_json(self.contexts, sample=SAMPLE, seed=SEED),
            "savings": self.savings.to_json(),
            "origin": {"kind": self.origin.kind, "told": self.origin.told},
            **({"notes": list(self.notes)} if self.notes else {}),
        }


def _contexts_json(contexts: Mapping[str, Gain], **more: int) -> dict[str, Any]:
    if not contexts:
        return {}
    return {"contexts": {**{name: gain.to_json() for name, gain in contexts.items()}, **more}}
