"""Tensors of many shapes share a few compiled programs, and few bytes of memory."""

from __future__ import annotations

import jax
import ml_dtypes
import numpy as np

import jentropy

DTYPES = (ml_dtypes.bfloat16, np.float16, np.float32, ml_dtypes.float8_e4m3fn)
MOST = 30  # compiles of all tensors of up to a chunk


def test_many_shapes_take_few_compiles():
    rng = np.random.default_rng(0)
    shapes = {(int(a), int(b)) for a, b in rng.integers(1, 300, (200, 2))}
    shapes = [*sorted(shapes)[:117], (700, 300), (1, 400_000), (1100, 800)]
    tree = {
        str(shape): (rng.standard_normal(shape) * 0.02).astype(DTYPES[i % len(DTYPES)])
        for i, shape in enumerate(shapes)
    }
    assert len(tree) == 120
    compiled: list[str] = []

    def heard(event: str, _: float, **__: object) -> None:
        if event.endswith("backend_compile_duration"):
            compiled.append(event)

    jax.clear_caches()
    jax.monitoring.register_event_duration_secs_listener(heard)
    try:
        packed = jentropy.compress(tree)
        restored = jentropy.decompress(packed)
        alone = [jentropy.decompress(jentropy.compress(leaf)) for leaf in list(tree.values())[:8]]
    finally:
        jax.monitoring.unregister_event_duration_listener(heard)
    assert 0 < len(compiled) <= MOST, len(compiled)
    for name, leaf in tree.items():
        assert restored[name].tobytes() == leaf.tobytes(), name
    assert all(a.tobytes() == b.tobytes() for a, b in zip(alone, tree.values(), strict=False))
