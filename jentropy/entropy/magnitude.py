"""How large weights are: the distribution of log2 |w|.

Weights below 2^-16 (zeros among them) are counted apart, and NaN and Inf are left out. After
shifting by the mean and dividing by the standard deviation, the curves of trained models fall on
one another.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from jentropy.formats import FP32, ElementFormat

from .statistics import SLICE_BITS
from .weights import WeightCounts

SMALLEST = -16  # log2 of the smallest weight that counts
BINS_PER_OCTAVE = 4
_OCTAVES = 1024 - SMALLEST  # up to the largest double


@dataclass(slots=True)
class Magnitudes:
    """A histogram of log2 |w| that tensors are added to."""

    counts: np.ndarray = field(
        default_factory=lambda: np.zeros(_OCTAVES * BINS_PER_OCTAVE, np.int64)
    )  # bin i holds SMALLEST + i / 4 <= log2 |w| < SMALLEST + (i + 1) / 4
    small: int = 0  # |w| < 2^SMALLEST
    total: float = 0.0  # sum of log2 |w| over the counted weights
    squares: float = 0.0

    def add(self, counts: WeightCounts) -> None:
        """Adds a weight. Codes wider than 16 bits are taken by their 16 leading bits."""
        if counts.magnitudes is not None:
            self._add_leading(counts.magnitudes, FP32)
        elif counts.number_format.element.bias is not None:
            self._add_leading(counts.code.slices[-1], counts.number_format.element)

    def _add_leading(self, top: np.ndarray, element: ElementFormat) -> None:
        """Adds a histogram of the leading 16 bits of codes, or of all that they have."""
        used = np.flatnonzero(top)
        below = element.code_bits - min(element.code_bits, SLICE_BITS)
        # The middle of the values that share the leading bits.
        middle = np.uint64((1 << below) // 2)
        codes = (used.astype(np.uint64) << np.uint64(below)) + middle
        values = codes.astype(f"uint{8 * element.dtype.itemsize}").view(element.dtype)
        with np.errstate(invalid="ignore"):  # signalling NaNs
            magnitude = np.abs(values.astype(np.float64))
        weight = top[used]
        finite = np.isfinite(magnitude)
        large = finite & (magnitude >= 2.0**SMALLEST)
        self.small += int(weight[finite & ~large].sum())
        log2, weight = np.log2(magnitude[large]), weight[large]
        bins = np.floor((log2 - SMALLEST) * BINS_PER_OCTAVE).astype(np.int64)
        np.add.at(self.counts, bins, weight)
        self.total += float((weight * log2).sum())
        self.squares += float((weight * log2**2).sum())

    def to_json(self) -> dict:
        """The contract's `magnitude`."""
        counted = int(self.counts.sum())
        last = int(np.flatnonzero(self.counts)[-1]) + 1 if counted else 0
        mean = self.total / max(1, counted)
        variance = max(0.0, self.squares / max(1, counted) - mean**2)
        everything = counted + self.small
        return {
            "log2_edges": [SMALLEST + i / BINS_PER_OCTAVE for i in range(last + 1)],
            "counts": self.counts[:last].tolist(),
            "mean_log2": mean if counted else None,
            "std_log2": variance**0.5 if counted else None,
            "small_fraction": self.small / everything if everything else None,
        }
