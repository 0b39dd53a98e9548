"""What `import jentropy` loads: no kernel compilers, no framework that only some commands need."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Private and experimental pieces of jax that only kernels need.
PIECES = (
    "jax.experimental.pallas.mosaic_gpu",
    "jax.experimental.mosaic.gpu",
    "jax.experimental.pallas.tpu",
    "jax.experimental.xla_metadata",
)
HEAVY = ("flax", "matplotlib", "jentropy.bench", "jentropy.models", "jentropy.report", *PIECES[:3])
COMPRESS = """
import numpy as np
w = {"w": np.random.default_rng(0).standard_normal((300, 500)).astype(jentropy.formats.BF16.dtype)}
packed = jentropy.compress(w)
assert (jentropy.decompress(packed)["w"].view("u2") == w["w"].view("u2")).all()
resident = jentropy.to_resident(packed, backend="reference")["w"]
assert jentropy.matmul(np.ones((2, 300), np.float32), resident).shape == (2, 500)
"""


def run(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_is_light():
    program = "import sys, jax, orbax.checkpoint; before = set(sys.modules); import jentropy; "
    assert run(program + f"print((set(sys.modules) - before) & set({HEAVY}))").strip() == "set()"


@pytest.mark.parametrize("piece", PIECES)
def test_works_without(piece):
    """As on a release of jax that has moved it."""
    run(
        f"import jax, orbax.checkpoint, sys; sys.modules['{piece}'] = None; import jentropy\n"
        + COMPRESS
    )
