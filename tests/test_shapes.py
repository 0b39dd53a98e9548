"""Tensors of many shapes share a few compiled programs, and few bytes of memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import jentropy
from jentropy import formats
from jentropy.formats import QuantizedTensor, quantize

DTYPES = (ml_dtypes.bfloat16, np.float16, np.float32, ml_dtypes.float8_e4m3fn)
MOST = 20  # compiles of all tensors of up to a chunk
LOADING = 4  # of lanes, and merges of chunks of three sizes


@contextmanager
def compiles() -> Iterator[list[str]]:
    """What JAX compiles."""
    compiled: list[str] = []

    def heard(event: str, _: float, **__: object) -> None:
        if event.endswith("backend_compile_duration"):
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(heard)
    try:
        yield compiled
    finally:
        jax.monitoring.unregister_event_duration_listener(heard)


@pytest.mark.parametrize("name", ["BF16", "FP8"])
def test_matrices_alike_are_packed_for_tpu_by_the_same_programs(name):
    """However many escapes, or NaN, each of them has."""
    number_format = formats.FORMATS["BF16"] if name == "BF16" else formats.FP8_ROW
    shape = 136, 640  # of no other test
    values = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    if number_format.parameters:
        codes = {
            key: np.array(one) for key, one in quantize(jnp.asarray(values), number_format).items()
        }
    else:
        codes = {"code": formats.codes_of(values.astype(ml_dtypes.bfloat16))}
    weights = []
    for rare in (3, 40, 500, 900):
        some = codes["code"].copy()
        some.reshape(-1)[:rare] = 0x7F  # a NaN, or a subnormal of BF16
        codes_of_it = codes | {"code": some}
        weights.append(QuantizedTensor(number_format=number_format, codes=codes_of_it))
    with compiles() as compiled:
        jentropy.to_resident(weights[0], "tpu")
        first = len(compiled)
        for weight in weights[1:]:
            jentropy.to_resident(weight, "tpu")
    assert first > 0
    assert len(compiled) == first


def test_many_shapes_take_few_compiles(packed, fixtures):
    jax.clear_caches()
    # Models are packed and stacked on a CPU without a program: these are the codec's.
    for path, most in ((packed["llama_bf16"], LOADING), (fixtures / "llama_bf16", 0)):
        with compiles() as compiled:
            jentropy.models.load(path)
        assert len(compiled) <= most, path
    rng = np.random.default_rng(0)
    shapes = {(int(a), int(b)) for a, b in rng.integers(1, 300, (200, 2))}
    shapes = [*sorted(shapes)[:117], (700, 300), (1, 400_000), (1100, 800)]
    tree = {
        str(shape): (rng.standard_normal(shape) * 0.02).astype(DTYPES[i % len(DTYPES)])
        for i, shape in enumerate(shapes)
    }
    assert len(tree) == 120
    with compiles() as compiled:
        packed = jentropy.compress(tree)
        restored = jentropy.decompress(packed)
        alone = [jentropy.decompress(jentropy.compress(leaf)) for leaf in list(tree.values())[:8]]
    assert 0 < len(compiled) <= MOST, len(compiled)
    for name, leaf in tree.items():
        assert restored[name].tobytes() == leaf.tobytes(), name
    assert all(a.tobytes() == b.tobytes() for a, b in zip(alone, tree.values(), strict=False))
