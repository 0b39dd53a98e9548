"""Histograms, entropies, magnitudes and contexts of codes, and the report made of them."""

from .building import ReportBuilder
from .comparison import Comparison, compare
from .contexts import Gain
from .estimators import shannon_bits
from .gains import Savings
from .magnitude import Magnitudes
from .many import Many, many_of
from .metering import measure_all
from .report import (
    EntropyReport,
    FieldReport,
    FormatReport,
    Origin,
    PooledReport,
    TensorReport,
    counted,
)
from .roles import Role, role_of
from .statistics import Counts, count_bytes, measure, measure_packed
from .weights import Slab, WeightCounts, measure_weight

__all__ = [
    "Comparison",
    "Counts",
    "EntropyReport",
    "FieldReport",
    "FormatReport",
    "Gain",
    "Magnitudes",
    "Many",
    "Origin",
    "PooledReport",
    "ReportBuilder",
    "Role",
    "Savings",
    "Slab",
    "TensorReport",
    "WeightCounts",
    "compare",
    "counted",
    "count_bytes",
    "many_of",
    "measure",
    "measure_all",
    "measure_packed",
    "measure_weight",
    "role_of",
    "shannon_bits",
]
