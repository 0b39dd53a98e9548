"""Tensors, in any order, to a report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from jentropy.formats import RAW

from . import gains
from .contexts import Gain, pooled
from .gains import Savings
from .magnitude import magnitudes_of
from .report import EntropyReport, FieldReport, FormatReport, Origin, PooledReport, TensorReport
from .roles import NAMES, OTHER, role_of
from .weights import WeightCounts

Contexts = Mapping[str, Gain]


@dataclass(slots=True)
class _Pool:
    """Tensors of one format and role."""

    tensors: int = 0
    counts: dict[tuple, WeightCounts] = field(default_factory=dict)  # what can be added
    savings: Savings = field(default_factory=lambda: gains.total([]))
    contexts: dict[str, list[tuple[int, Gain]]] = field(default_factory=dict)


class ReportBuilder:
    """Collects tensors into a report.

    Args:
      source: for the report.
      notes: for the report.
      origin: for the report.

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

    def __init__(self, source: str, notes: tuple[str, ...] = (), origin: Origin | None = None):
        self._source, self._notes = source, notes
        self._origin = Origin() if origin is None else origin
        self._pools: dict[tuple[str, str], _Pool] = {}
        self._tensors: list[TensorReport] = []

    def add(
        self,
        name: str,
        dialect: str,
        shape: tuple[int, ...],
        counts: WeightCounts,
        note: str = "",
        *,
        resident_bits: float | None = None,
        contexts: Contexts = MappingProxyType({}),
    ) -> None:
        """Adds a tensor.

        Args:
          name, dialect, shape, note: of it.
          counts: of its codes.
          resident_bits: of a weight in device memory; None: as it is stored.
          contexts: what each saves.
        """
        kind = counts.number_format.name
        role = None if kind == RAW else role_of(name)
        pool = self._pools.setdefault((kind, role.name if role else OTHER), _Pool())
        known = pool.counts.get(counts.key)
        pool.counts[counts.key] = counts if known is None else known + counts
        pool.tensors += 1
        fields = counts.field_entropy_bits()
        tensor = TensorReport(
            name=name,
            format=kind,
            dialect=dialect,
            shape=shape,
            allocated_bits=counts.allocated_bits(),
            entropy_bits=sum(fields.values()),
            joint_entropy_bits=counts.joint_entropy_bits(),
            described_bits=counts.described_bits(),
            fields=fields,
            role=role,
            note=note,
            contexts=contexts,
        )
        resident = tensor.allocated_bits if resident_bits is None else resident_bits
        per_byte = counts.weights / 8
        of_it = Savings(
            stored=tensor.allocated_bits * per_byte,
            archive=tensor.described_bits * per_byte,
            resident=resident * per_byte,
        )
        pool.savings = gains.total([pool.savings, of_it])
        for context, gain in contexts.items():
            pool.contexts.setdefault(context, []).append((tensor.weights, gain))
        self._tensors.append(tensor)

    def build(self) -> EntropyReport:
        """The report of what was added."""
        by_kind: dict[str, dict[str, _Pool]] = {}
        for (kind, role), pool in self._pools.items():
            by_kind.setdefault(kind, {})[role] = pool
        kinds = {kind: _merged(pools.values()) for kind, pools in by_kind.items()}
        formats = {kind: _format(pool, by_kind[kind], kind) for kind, pool in kinds.items()}
        whole = _merged(pool for kind, pool in kinds.items() if kind != RAW)
        return EntropyReport(
            source=self._source,
            formats=formats,
            tensors=self._tensors,
            **_of_weights(whole),
            origin=self._origin,
            notes=self._notes,
        )


def _merged(pools: Iterable[_Pool]) -> _Pool:
    """Tensors of several pools."""
    whole = _Pool()
    for pool in pools:
        whole.tensors += pool.tensors
        for key, counts in pool.counts.items():
            known = whole.counts.get(key)
            whole.counts[key] = counts if known is None else known + counts
        whole.savings = gains.total([whole.savings, pool.savings])
        for context, found in pool.contexts.items():
            whole.contexts.setdefault(context, []).extend(found)
    return whole


def _format(pool: _Pool, by_role: Mapping[str, _Pool], kind: str) -> FormatReport:
    if kind == RAW:
        return FormatReport(**_figures(pool))
    roles = {
        role: PooledReport(**_figures(by_role[role]), **_of_weights(by_role[role]))
        for role in NAMES
        if role in by_role
    }
    return FormatReport(**_figures(pool), **_of_weights(pool), roles=roles)


def _of_weights(pool: _Pool) -> dict[str, Any]:
    """What a `PooledReport` says of what is not RAW."""
    return {
        "magnitudes": magnitudes_of(pool.counts.values()),
        "contexts": {name: pooled(found) for name, found in pool.contexts.items()},
        "savings": pool.savings,
    }


def _figures(pool: _Pool) -> dict[str, Any]:
    """Entropies of weights of one format, whose elements or parameters may differ in width."""
    parts = list(pool.counts.values())
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
    return {
        "weights": weights,
        "tensors": pool.tensors,
        "allocated_bits": sum(f.allocated_bits for f in fields.values()),
        "entropy_bits": sum(f.entropy_bits for f in fields.values()),
        "joint_entropy_bits": mean(known) if len(known) == len(joints) else None,
        "fields": fields,
    }
