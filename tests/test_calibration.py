"""Sums over what matrices are given, against NumPy's in float64 over the arrays themselves."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jentropy import models, modes
from jentropy.errors import InputError
from jentropy.models import calibration
from jentropy.models.caches import Turn
from jentropy.models.calibration import calibrate
from jentropy.models.decoder import turning
from jentropy.models.experts import Projection
from jentropy.models.kinds import take
from jentropy.models.layers import Linear

pytestmark = pytest.mark.usefixtures("compiled_quickly")


@pytest.fixture(scope="module")
def model(fixtures):
    return models.load(fixtures / "models" / "qwen3_moe", compute_dtype="float32")


@pytest.fixture(scope="module")
def rows(model):
    return np.random.default_rng(0).integers(0, model.config.vocab_size, (6, 24))


@modes.standard
def directly(model, ids):
    """Of every layer and path the input, the derivative by the output, and sizes of groups."""
    order = sorted((n, k, at) for k, m in enumerate(model.members) for at, n in enumerate(m))
    seen = {}

    def loss(probes, shapes):
        x, used = model.embedded(ids), {}
        for number, kind, at in order:
            block = take(model.layers[kind], jnp.int32(at))
            for path, part in nnx.iter_modules(block):
                name = ".".join(map(str, path))

                def around(product, x, sizes=None, key=(number, name)):
                    y = product(x)
                    used[key] = x, sizes
                    shapes[key] = y
                    return y if probes is None else y + probes[key]

                if isinstance(part, Linear | Projection):
                    part.around = around
            table = turning(model.config, model.kinds[kind], jnp.int32(ids.shape[1]))
            turn = Turn(jnp.int32(0), jnp.int32(0), *(each[at] for each in table))
            cache = model.layers[kind].self_attn.new_cache(1, *ids.shape, jnp.float32)
            x, _ = block(x, cache, turn)
        chosen = jax.nn.log_softmax(model.logits(model.norm(x)))[:, :-1]
        return -jnp.take_along_axis(chosen, ids[:, 1:, None], axis=-1).sum(), used

    jax.eval_shape(lambda: loss(None, seen)[0])
    probes = {key: jnp.zeros(y.shape, y.dtype) for key, y in seen.items()}
    derive = jax.jit(lambda probes: jax.grad(loss, has_aux=True)(probes, {}))
    derivatives, used = derive(probes)
    return {key: (*used[key], derivatives[key]) for key in derivatives}


def test_sums_are_those_of_all_tokens(model, rows):
    calls = []
    found = calibrate(model, rows, batch=2, progress=calls.append)
    assert calls == [2, 2, 2]
    direct = directly(model, jnp.asarray(rows, jnp.int32))
    checked = 0
    for (layer, path), (x, sizes, g) in direct.items():
        x, g = (np.asarray(a, np.float64).reshape(-1, a.shape[-1]) for a in (x, g))
        ends = [0, len(x)] if sizes is None else [0, *np.cumsum(np.asarray(sizes))]
        for expert, (first, end) in enumerate(itertools.pairwise(ends)):
            module, _, name = path.rpartition(".")
            one = path if sizes is None else f"{module}.{expert}.{name}"
            sums = found.of(f"layers.{layer}.{one}")
            part, gradients = x[first:end], g[first:end]
            assert sums["tokens"] == end - first
            if end > first:
                hessian = part.T @ part / (end - first)
                error = np.abs(np.asarray(sums["hessian"]) - hessian).max()
                assert error < 2e-6 * np.abs(hessian).max()
                np.testing.assert_allclose(sums["low"], part.min(0).clip(max=0), rtol=1e-5)
                np.testing.assert_allclose(sums["high"], part.max(0).clip(min=0), rtol=1e-5)
                np.testing.assert_allclose(sums["gradient"], (gradients**2).mean(), rtol=1e-4)
            checked += 1
    assert checked == len(set(found.addresses())) == 3 * 4 + 3 + 2 * (1 + 3 * 5)


def test_sums_are_gone_on_with(model, rows, tmp_path, monkeypatch):
    monkeypatch.setattr(calibration, "SAVED_SECONDS", 0.0)
    whole = calibrate(model, rows, batch=2, gradients=False)
    path, calls = tmp_path / "sums", []

    def stop(done):
        calls.append(done)
        if len(calls) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate(model, rows, batch=2, gradients=False, path=path, progress=stop)
    resumed = calibrate(model, rows, batch=2, gradients=False, path=path, progress=calls.append)
    assert calls == [2, 2, 2, 2, 2]  # what was there, and two batches
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(InputError, match="those of this text and model"):
        calibrate(model, rows[::-1], batch=2, path=path)
    with pytest.raises(InputError, match="no sums of a matrix"):
        whole.of("layers.0.mlp.other")
