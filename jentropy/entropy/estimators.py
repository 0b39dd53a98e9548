"""Shannon entropy of counted symbols."""

from __future__ import annotations

import numpy as np


def shannon_bits(counts: np.ndarray) -> float:
    """Entropy of the empirical distribution, bits per symbol (the plug-in estimate).

    It reads low, by about (symbols in use - 1) / (2 n ln 2) bits, where there are few samples n for
    the number of symbols; it is what an ideal coder reaches that knows the counts.

    Args:
      counts: int[symbols], how often each symbol occurs.

    Returns:
      Bits per symbol; 0 for no symbols.

    Example:
      >>> import numpy as np
      >>> shannon_bits(np.array([1, 1, 2]))
      1.5

    References:
      Shannon 1948; Miller 1955 on the bias.
    """
    positive = np.asarray(counts)
    positive = positive[positive > 0].astype(np.float64)
    total = positive.sum()
    if total == 0:
        return 0.0
    return float(max(0.0, np.log2(total) - (positive * np.log2(positive)).sum() / total))
