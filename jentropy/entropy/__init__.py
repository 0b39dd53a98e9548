"""Histograms, entropies and magnitudes of codes, and the report made of them."""

from .estimators import shannon_bits
from .report import EntropyReport, ReportBuilder
from .statistics import Counts, measure

__all__ = ["Counts", "EntropyReport", "ReportBuilder", "measure", "shannon_bits"]
