"""What differs between the jax releases that jentropy supports (0.10 to 0.12)."""

from __future__ import annotations

import jax

JAX_VERSION: tuple[int, ...] = tuple(int(part) for part in jax.__version__.split(".")[:3])
