"""Dialect `plain`: every stored array is a weight of its dtype's format.

It claims every checkpoint, so it comes last, and it has no quantised weights.
"""

from __future__ import annotations

from .weight import Contents, StoredArray, Tensor

NAME, VERSION = "plain", 1


def claims(contents: Contents) -> bool:
    """Any checkpoint."""
    return True


def weight(contents: Contents, array: StoredArray) -> Tensor | None:
    """No array is more than its dtype says."""
    return None
