"""Histograms, entropies and magnitudes of codes, and the report made of them."""

from .estimators import shannon_bits
from .report import (
    EntropyReport,
    FieldReport,
    FormatReport,
    ReportBuilder,
    TensorReport,
    counted,
)
from .statistics import Counts, count_bytes, measure, measure_packed
from .weights import WeightCounts, measure_weight

__all__ = [
    "Counts",
    "EntropyReport",
    "FieldReport",
    "FormatReport",
    "ReportBuilder",
    "TensorReport",
    "WeightCounts",
    "counted",
    "count_bytes",
    "measure",
    "measure_packed",
    "measure_weight",
    "shannon_bits",
]
