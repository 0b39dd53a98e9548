"""The 21M-parameter model pylm: the figures that the project quotes, found again."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jentropy
from jentropy import models

from .test_models import reference, relative_error


@pytest.fixture(scope="module")
def pylm(shared, tmp_path_factory):
    source = shared / "checkpoints" / "pylm"
    target = tmp_path_factory.mktemp("pylm") / "packed"
    jentropy.compress_checkpoint(source, target)
    return source, target


def test_the_known_picture(pylm):
    report = jentropy.analyze(pylm[0])
    (row,) = report.formats.values()
    assert row.weights == report.weights == 20_978_944
    assert row.fields["sign"].entropy_bits == pytest.approx(1.000, abs=0.001)
    assert row.fields["exponent"].entropy_bits == pytest.approx(2.584, abs=0.001)
    assert row.fields["mantissa"].entropy_bits == pytest.approx(6.972, abs=0.001)
    assert row.joint_entropy_bits == pytest.approx(10.510, abs=0.001)


def test_the_archive_is_near_the_entropy(pylm):
    inspection = jentropy.inspect(pylm[1])
    split = jentropy.analyze(pylm[0]).formats["BF16"].entropy_bits
    assert inspection.per_tensor_joint_bits == pytest.approx(10.483, abs=0.001)
    assert inspection.bits_per_weight <= split + 0.06
    assert jentropy.verify(pylm[1], against=pylm[0]).compared


def test_logits_and_greedy_tokens(pylm, shared):
    expected = reference(shared / "checkpoints" / "pylm.reference.safetensors")
    model = models.load(pylm[1], compute_dtype=jnp.float32)
    run = nnx.jit(lambda m, i: m(i))
    for i in range(4):
        prompt = jnp.asarray(expected[f"prompt_{i}"], jnp.int32)
        found = np.asarray(run(model, prompt))
        assert relative_error(found, expected[f"logits_{i}"]) < 1e-5
        greedy = models.generate(model, prompt, max_new_tokens=48)
        np.testing.assert_array_equal(greedy, expected[f"greedy_{i}"])
