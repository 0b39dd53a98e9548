"""How large weights are: the distribution of log2 |w|.

Weights below 2^-16 (zeros among them) are counted apart, and NaN and Inf are left out. After
shifting by the mean and dividing by the standard deviation, the curves of trained models fall on
one another.

Curves are smooth: every weight is a Gaussian of BANDWIDTH octaves. A histogram of less than an
octave would show the grid of the codes instead, whose steps are .4 to 1 octave in E2M1.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from jentropy.formats import FP32, ElementFormat

from .statistics import SLICE_BITS
from .weights import WeightCounts

SMALLEST = -16  # log2 of the smallest weight that counts
BANDWIDTH = 0.5  # octaves; standard deviation of what a weight is spread to
STEPS = 8  # points of a curve in an octave
_FINE = 32  # bins in an octave that weights are put in before they are spread
_REACH = 5  # standard deviations that count
_DIGITS = 7

# Points of normalised curves, in standard deviations.
POINTS = np.arange(-5, 4 + 1 / 32, 1 / 16)


@dataclass(frozen=True, slots=True, kw_only=True)
class Magnitudes:
    """Magnitudes of weights, each with the number of weights that have it.

    Attributes:
      log2: float64[n]: log2 |w| of those from 2^SMALLEST on.
      counts: int64[n].
      small: how many are below.

    Example:
      >>> sizes = Magnitudes(log2=np.array([-3.0, -1.0]), counts=np.array([1, 1]), small=2)
      >>> sizes.mean, sizes.deviation, sizes.small_fraction
      (-2.0, 1.0, 0.5)
    """

    log2: np.ndarray
    counts: np.ndarray
    small: int

    @property
    def counted(self) -> int:
        """Weights from 2^SMALLEST on."""
        return int(self.counts.sum())

    @property
    def mean(self) -> float:
        """Of log2 |w|; NaN if none counts."""
        return float((self.counts * self.log2).sum() / self.counted) if self.counted else np.nan

    @property
    def deviation(self) -> float:
        """Standard deviation of log2 |w|; NaN if none counts."""
        if not self.counted:
            return np.nan
        squares = (self.counts * (self.log2 - self.mean) ** 2).sum()
        return float((squares / self.counted) ** 0.5)

    @property
    def small_fraction(self) -> float:
        """Share of the weights below 2^SMALLEST; NaN of no weights."""
        everything = self.counted + self.small
        return self.small / everything if everything else np.nan

    def octaves(self) -> tuple[list[int], list[int]]:
        """Edges in log2, and how many weights lie between them."""
        if not self.counted:
            return [SMALLEST], []
        bins = np.floor(self.log2).astype(np.int64) - SMALLEST
        counts = np.zeros(bins.max() + 1, np.int64)
        np.add.at(counts, bins, self.counts)  # exact, unlike weights of bincount
        return [SMALLEST + i for i in range(counts.size + 1)], counts.tolist()

    def density(self) -> tuple[np.ndarray, np.ndarray]:
        """Points in log2, and the smooth share of weights per octave there."""
        points, spread = self._spread()
        return points[:: _FINE // STEPS], spread[:: _FINE // STEPS] * _FINE

    def mode(self) -> float:
        """Where the smooth density is largest; NaN if no weight counts."""
        points, spread = self._spread()
        return float(points[spread.argmax()]) if self.counted else np.nan

    def cumulative(self) -> np.ndarray:
        """Share of weights below POINTS standard deviations from the mean, smooth. float64[n]."""
        points, spread = self._spread()
        if not self.counted or not self.deviation:
            return np.full(POINTS.size, np.nan)
        edges = (points + 0.5 / _FINE - self.mean) / self.deviation
        return np.interp(POINTS, edges, spread.cumsum(), left=0.0, right=1.0)

    def _spread(self) -> tuple[np.ndarray, np.ndarray]:
        """Points of fine bins, and the share of weights that is spread to each."""
        if not self.counted:
            return np.zeros(0), np.zeros(0)
        bins = np.round(self.log2 * _FINE).astype(np.int64)
        reach = round(_REACH * BANDWIDTH * _FINE)
        # The coarser points are multiples of their step.
        first = (int(bins.min()) - reach) // _FINE * _FINE
        fine = np.bincount(bins - first, self.counts, minlength=int(bins.max()) - first + reach + 1)
        kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / (BANDWIDTH * _FINE)) ** 2)
        spread = np.convolve(fine, kernel / kernel.sum(), mode="same") / self.counted
        return (first + np.arange(spread.size)) / _FINE, spread

    def to_json(self) -> dict[str, Any]:
        """The contract's `magnitude`."""
        edges, counts = self.octaves()
        points, density = self.density()
        return {
            "log2_edges": edges,
            "counts": counts,
            "mean_log2": _number(self.mean),
            "std_log2": _number(self.deviation),
            "mode_log2": _number(self.mode()),
            "small": self.small,
            "small_fraction": _number(self.small_fraction),
            "density": {
                "bandwidth": BANDWIDTH,
                "log2": points.tolist(),
                "per_octave": density.round(_DIGITS).tolist(),
            },
        }


def magnitudes_of(many: Iterable[WeightCounts]) -> Magnitudes:
    """Magnitudes of what weights were counted together.

    Args:
      many: counts. Codes wider than 16 bits are taken by their 16 leading bits; those of a block
        format by its numbers; RAW ones have no magnitudes.

    Returns:
      Their `Magnitudes`.

    Example:
      >>> from jentropy.entropy import measure_weight
      >>> from jentropy.formats import FORMATS
      >>> codes = np.array([0x3C00, 0xC000, 0], np.uint16)  # 1, -2, 0
      >>> magnitudes = magnitudes_of([measure_weight({"code": codes}, FORMATS["FP16"])])
      >>> magnitudes.mean, magnitudes.small
      (0.5, 1)
    """
    parts = []
    for counts in many:
        if counts.magnitudes is not None:
            parts.append(_leading(counts.magnitudes, FP32))
        elif counts.number_format.element.bias is not None:
            parts.append(_leading(counts.code.slices[-1], counts.number_format.element))
    none = np.zeros(0), np.zeros(0, np.int64), 0
    log2, weights, small = zip(none, *parts, strict=True)
    return Magnitudes(log2=np.concatenate(log2), counts=np.concatenate(weights), small=sum(small))


def _leading(top: np.ndarray, element: ElementFormat) -> tuple[np.ndarray, np.ndarray, int]:
    """Magnitudes of a histogram of the leading 16 bits of codes, or of all that they have."""
    used = np.flatnonzero(top)
    below = element.code_bits - min(element.code_bits, SLICE_BITS)
    # The middle of the values that share the leading bits.
    middle = np.uint64((1 << below) // 2)
    codes = (used.astype(np.uint64) << np.uint64(below)) + middle
    values = codes.astype(f"uint{8 * element.dtype.itemsize}").view(element.dtype)
    with np.errstate(invalid="ignore"):  # signalling NaNs
        magnitude = np.abs(values.astype(np.float64))
    weight, finite = top[used], np.isfinite(magnitude)
    large = finite & (magnitude >= 2.0**SMALLEST)
    return np.log2(magnitude[large]), weight[large], int(weight[finite & ~large].sum())


def _number(value: float) -> float | None:
    return None if np.isnan(value) else value
