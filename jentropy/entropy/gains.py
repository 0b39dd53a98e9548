"""What coding saves: bytes on disk, bytes in device memory, and the speed that these bound."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

WORTH_IT = 0.01  # share of the bytes, below which nothing is to be gained


@dataclass(frozen=True, slots=True, kw_only=True)
class Savings:
    """Bytes of weights, scales included.

    Attributes:
      stored: as they are.
      archive: described tensor by tensor, see `Counts.described_bits`: what archive codecs come
        near to.
      resident: at the fixed rate that kernels read from device memory.

    Example:
      >>> savings = Savings(stored=1600, archive=1056, resident=1200)
      >>> savings.verdict, round(savings.speed_bound, 2)
      ('34% smaller on disk, 25% smaller in device memory', 1.33)
    """

    stored: float
    archive: float
    resident: float

    @property
    def archive_share(self) -> float:
        """Of the bytes, that an archive saves."""
        return 1 - self.archive / self.stored if self.stored else 0.0

    @property
    def resident_share(self) -> float:
        """Of the bytes, that need not be read from device memory."""
        return 1 - self.resident / self.stored if self.stored else 0.0

    @property
    def speed_bound(self) -> float:
        """How many times as fast a step may be that does nothing but read weights."""
        return self.stored / self.resident if self.resident else 1.0

    @property
    def verdict(self) -> str:
        """In words."""
        shares = {"on disk": self.archive_share, "in device memory": self.resident_share}
        worth = [f"{share:.0%} smaller {at}" for at, share in shares.items() if share >= WORTH_IT]
        return ", ".join(worth) or "not worth it: less than 1% is to be gained"

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "stored_bytes": round(self.stored),
            "archive_bytes": round(self.archive),
            "resident_bytes": round(self.resident),
            "speed_bound": self.speed_bound,
            "verdict": self.verdict,
        }


def total(parts: Iterable[Savings]) -> Savings:
    """The sum.

    Example:
      >>> total([]).stored
      0
    """
    many = list(parts)
    return Savings(
        stored=sum(one.stored for one in many),
        archive=sum(one.archive for one in many),
        resident=sum(one.resident for one in many),
    )
