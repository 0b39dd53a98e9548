"""What models take of a device: counted from shapes, and by the compiler of a TPU."""

from __future__ import annotations

import jax
import pytest

from jentropy.models.footprint import abstract_model, described
from jentropy.pallas_kernels import default_backend  # noqa: F401

from .compilers import needs, outputs
from .conftest import HERE

LLAMA, QWEN = (HERE / "configs" / name for name in ("llama-3.1-8b", "qwen3-8b"))
GB = 1 << 30
