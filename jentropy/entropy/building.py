"""Tensors, in any order, to a report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
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


def _none() -> Contexts:
    return {}


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
        self._tensors: list[tuple[TensorReport, Callable[[], Contexts]]] = []

    def add(
        self,
        name: str,
        dialect: str,
        shape: tuple[int, ...],
        counts: WeightCounts,
        note: str = "",
        *,
        resident_bits: float | None = None,
        contexts: Callable[[], Contexts] = _none,
    ) -> None:
        """Adds a tensor.

        Args:
          name, dialect, shape, note: of it.
          counts: of its codes.
          resident_bits: of a weight in device memory; None: as it is stored.
          contexts: gives what contexts save, when the report is built.
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
        )
        resident = tensor.allocated_bits if resident_bits is None else resident_bits
        per_byte = counts.weights / 8
        of_it = Savings(
            stored=tensor.allocated_bits * per_byte,
            archive=tensor.described_bits * per_byte,
            resident=resident * per_byte,
        )
        pool.savings = gains.total([pool.savings, of_it])
        self._tensors.append((tensor, contexts))

    def build(self) -> EntropyReport:
        """The report of what was added."""
        tensors = [self._finished(tensor, contexts()) for tensor, contexts in self._tensors]
        kinds = dict.fromkeys(kind for kind, _ in self._pools)
        formats = {kind: self._format(kind) for kind in kinds}
        weights = [pool for (kind, _), pool in self._pools.items() if kind != RAW]
        return EntropyReport(
            source=self._source,
            formats=formats,
            tensors=tensors,
            magnitudes=magnitudes_of(c for pool in weights for c in pool.counts.values()),
            contexts=_mean([pool.contexts for pool in weights]),
            savings=gains.total(pool.savings for pool in weights),
            origin=self._origin,
            notes=self._notes,
        )

    def _finished(self, tensor: TensorReport, contexts: Contexts) -> TensorReport:
        """The same, with what contexts save, which its pool is told of."""
        if not contexts:
            return tensor
        role = OTHER if tensor.role is None else tensor.role.name
        for name, gain in contexts.items():
            found = self._pools[tensor.format, role].contexts.setdefault(name, [])
            found.append((tensor.weights, gain))
        return replace(tensor, contexts=contexts)

    def _format(self, kind: str) -> FormatReport:
        pools = {role: pool for (k, role), pool in self._pools.items() if k == kind}
        if kind == RAW:
            return FormatReport(**_figures(list(pools.values())))
        roles = {
            role: PooledReport(**_figures([pools[role]]), **_of_weights([pools[role]]))
            for role in NAMES
            if role in pools
        }
        many = list(pools.values())
        return FormatReport(**_figures(many), **_of_weights(many), roles=roles)


def _mean(parts: list[dict[str, list[tuple[int, Gain]]]]) -> dict[str, Gain]:
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: pooled([g for part in parts for g in part.get(name, [])]) for name in names}


def _of_weights(pools: list[_Pool]) -> dict[str, Any]:
    """What a `PooledReport` says of what is not RAW."""
    return {
        "magnitudes": magnitudes_of(c for pool in pools for c in pool.counts.values()),
        "contexts": _mean([pool.contexts for pool in pools]),
        "savings": gains.total(pool.savings for pool in pools),
    }


def _figures(pools: list[_Pool]) -> dict[str, Any]:
    """Entropies of weights of one format, whose elements or parameters may differ in width."""
    together: dict[tuple, WeightCounts] = {}
    for pool in pools:
        for key, counts in pool.counts.items():
            together[key] = together[key] + counts if key in together else counts
    parts = list(together.values())
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
        "tensors": sum(pool.tensors for pool in pools),
        "allocated_bits": sum(f.allocated_bits for f in fields.values()),
        "entropy_bits": sum(f.entropy_bits for f in fields.values()),
        "joint_entropy_bits": mean(known) if len(known) == len(joints) else None,
        "fields": fields,
    }
