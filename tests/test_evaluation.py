"""Figures of a model's losses, against NumPy's over its own logits."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jentropy
from jentropy import models, modes
from jentropy.cli import evaluate
from jentropy.cli.main import main
from jentropy.errors import InputError, UnsupportedError
from jentropy.formats import FORMATS, FP32, INT8_ROW, QuantizedTensor, dequantize, quantize
from jentropy.formats.step import SideArray, Step
from jentropy.models import activations, continuing, scoring, texts
from jentropy.models.layers import Linear
from jentropy.models.matrices import Matrices
from jentropy.models.rounded_inputs import Rounded
from jentropy.quantization import Recipe, Statistics, quantize_weight
from jentropy.quantization.alphabets import OfFormat
from jentropy.quantization.transforms import Centred, Hadamard, Smooth, SortedColumns

pytestmark = pytest.mark.usefixtures("compiled_quickly")


@pytest.fixture(scope="module")
def model():
    return models.load(models.BUNDLED, compute_dtype="float32")


@pytest.fixture(scope="module")
def other():
    return activations.simulated(models.load(models.BUNDLED, compute_dtype="float32"), "mxfp4")


@pytest.fixture(scope="module")
def rows(model):
    tokenizer = models.load_tokenizer(models.BUNDLED)
    text = texts.standard_library(texts.SCORES)
    return texts.token_sequences(text, tokenizer, model.config, sequences=4, length=32)


def log_softmax(logits):
    logits = np.asarray(logits, np.float64)
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def test_likelihood_and_distance(model, other, rows, monkeypatch):
    monkeypatch.setattr(scoring, "LOGITS", 2 * 32 * model.config.vocab_size)  # two batches
    calls = []
    found = scoring.likelihood(other, rows, model, progress=calls.append)
    assert calls == [2, 2]
    ours, theirs = (log_softmax(one(rows))[:, :-1] for one in (other, model))
    nll, reference = (
        -np.take_along_axis(p, rows[:, 1:, None], -1)[..., 0].mean(1) for p in (ours, theirs)
    )
    kl = (np.exp(theirs) * (theirs - ours)).sum(-1).mean(1)
    flips = (ours.argmax(-1) != theirs.argmax(-1)).mean(1)
    for mean, values in (
        (found.nll, nll),
        (found.reference, reference),
        (found.difference, nll - reference),
        (found.kl, kl),
        (found.flips, flips),
    ):
        np.testing.assert_allclose(mean.value, values.mean(), rtol=1e-3, atol=1e-6)
        np.testing.assert_allclose(mean.error, values.std(ddof=1) / 2, rtol=1e-2, atol=1e-6)
    assert found.kl.value > 0.01
    np.testing.assert_allclose(found.perplexity.value, np.exp(nll.mean()), rtol=1e-4)
    with pytest.raises(InputError, match="at least 2"):
        scoring.likelihood(model, rows[:, :1])


def test_continuations(model, rows):
    prompts = rows[:3, :16]
    alone, nll = continuing.continued(model, prompts, 6, batch=1)
    assert continuing.agreed(alone, alone + np.array([[0], [1], [0]])).tolist() == [6, 0, 6]
    together = continuing.continued(model, prompts, 6)[0]
    assert continuing.agreement_of(alone, together).whole == 1
    assert (nll[alone >= 0] >= 0).all()
    [size] = continuing.batch_sizes(model, rows, (1, 3), tokens=6)
    assert 0 <= size.logits < 1e-4
    drawn = continuing.sampled(model, prompts, 3, tokens=6, reference=model)
    assert drawn.nll.error > 0
    assert drawn.agreement.value == drawn.length.value == 6
    assert drawn.reference == drawn.nll


def test_the_command_says_which_activations_there_are():
    told = evaluate.ARGUMENTS["--activations"]["help"]
    assert set(activations.ACTIVATIONS) <= set(re.findall(r"[\w-]+", told))


@pytest.mark.parametrize("name", [n for n in activations.ACTIVATIONS if n != activations.NONE])
@modes.standard
def test_rounded_inputs(name):
    linear = Linear(256, 8, rngs=nnx.Rngs(0))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 256)), jnp.float32)
    exact = np.asarray(linear(x))
    linear.around = Rounded(activations.ACTIVATIONS[name])
    error = np.abs(np.asarray(linear(x)) - exact).max() / np.abs(exact).max()
    assert 0 < error < {"int8": 0.01, "fp8": 0.05, "sparse": 0.6}.get(name, 0.25)


@modes.standard
def test_rounded_inputs_are_products_of_codes():
    """W8A8: sums of whole numbers, times the scales of a token and of a row."""
    draw = np.random.default_rng(1)
    x, weight = (draw.normal(size=(n, 64)).astype("f4") for n in (6, 8))
    of_x, of_w = activations.ACTIVATIONS["int8"].number_format, INT8_ROW
    codes, own = quantize(x, of_x), quantize(weight, of_w)
    whole = [np.asarray(c["code"]).view(np.int8).astype(np.int32) for c in (codes, own)]
    scales = [
        np.asarray(f.parameters[0].element.decode(np.asarray(c["scale"])))
        for f, c in ((of_x, codes), (of_w, own))
    ]
    linear = Linear(64, 8, rngs=nnx.Rngs(0))
    linear.weight = nnx.Param(dequantize(of_w, own))
    linear.around = Rounded(activations.ACTIVATIONS["int8"])
    expected = (whole[0] @ whole[1].T) * scales[0] * scales[1].T
    np.testing.assert_allclose(linear(jnp.asarray(x)), expected, rtol=1e-5, atol=1e-5)


def test_leading_channels_have_more_bits():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(6, 256)), jnp.float32)
    lost = {
        name: np.square(np.asarray(activations.ACTIVATIONS[name].of(x) - x)).mean(0)
        for name in ("nvfp4", "nvfp4-residual", "int4-int8")
    }
    first, rest = np.split(lost["nvfp4-residual"], [32])
    assert first.mean() < 0.05 * rest.mean()
    np.testing.assert_array_equal(rest, lost["nvfp4"][32:])
    assert lost["int4-int8"][:128].mean() < 0.01 * lost["int4-int8"][128:].mean()
    sparse = np.asarray(activations.ACTIVATIONS["sparse"].of(x))
    assert ((sparse == 0).sum(1) == 128).all()
    assert (np.abs(sparse).max(1) == np.abs(x).max(1)).all()


@modes.standard
def test_inputs_are_rounded_where_their_weights_were():
    """A weight of ones and one input each: what reaches it is what the transforms say."""
    weight = jax.random.normal(jax.random.key(0), (8, 64))
    draw = np.random.default_rng(2)
    x = jnp.asarray(draw.normal(size=(7, 64)) + 3, jnp.float32)
    told = replace(Statistics.identity(64), low=x.min(0), high=x.max(0), hessian=x.T @ x / 7)
    kinds = (Centred(), Smooth(), SortedColumns(by_largest=True), Hadamard(block=8))
    exact = OfFormat(number_format=FORMATS["FP32"])
    made = quantize_weight(weight, Recipe(alphabet=exact, transforms=kinds), told)
    steps = made.number_format.transforms
    arrays = [step.arrays[0].numbers(made.codes[step.arrays[0].name]) for step in steps]
    seen = []

    class Seen(activations.Inputs):
        def of(self, rows):
            seen.append(rows)
            return super().of(rows)

    around = Rounded(Seen(), steps, arrays)
    np.testing.assert_allclose(around(lambda rows: rows, x), x, atol=1e-5)
    codes = jax.lax.bitcast_convert_type(made.codes["code"], jnp.float32)
    shift = arrays[0]
    np.testing.assert_allclose(
        seen[0] @ codes.T + (weight @ shift)[None], x @ weight.T, rtol=1e-4, atol=1e-4
    )


def test_activations_have_names(model):
    with pytest.raises(UnsupportedError, match="int8 or fp8"):
        activations.simulated(model, "int2")


def test_text_is_cut(model, tmp_path):
    tokenizer = models.load_tokenizer(models.BUNDLED)
    file = tmp_path / "text"
    file.write_text("import os\n" * 9)
    cut = texts.token_sequences(
        texts.texts_of(file, texts.SCORES), tokenizer, model.config, sequences=9, length=8
    )
    assert cut.shape[1] == 8
    with pytest.raises(InputError, match="at least 64 tokens"):
        texts.token_sequences(["a"], tokenizer, model.config, sequences=1, length=64)
    with pytest.raises(InputError, match="No such file"):
        texts.texts_of(tmp_path / "none", texts.SCORES)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="UTF-8"):
        texts.texts_of(file, texts.SCORES)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="regular file"):
        texts.texts_of(tmp_path / "pipe", texts.SCORES)


def test_command(tmp_path, capsys):
    file = tmp_path / "figures.json"
    base, delta = tmp_path / "base", tmp_path / "delta"
    jentropy.compress_checkpoint(models.BUNDLED, base)
    jentropy.compress_checkpoint(models.BUNDLED, delta, base=base)
    told = ["evaluate", str(delta), "--sequences", "2", "--length", "24", "--json"]
    assert main([*told, str(file), "--quiet"]) == 2
    assert "--base" in capsys.readouterr().err
    assert main([*told, str(file), "--quiet", "--base", str(base)]) == 0
    found = json.loads(file.read_text())
    assert found["likelihood"]["tokens"] == 46
    assert 0 < found["likelihood"]["nll"]["value"] < 7
    assert "agreement" not in found
    assert main([*told, str(file), "--batch-sizes", "4"]) == 2
    assert "two or more" in capsys.readouterr().err


def test_inputs_are_rounded_where_weights_were_scaled(tmp_path):
    source = models.BUNDLED
    checkpoint = jentropy.open_checkpoint(source)
    name = "model.layers.3.mlp.up_proj.weight"
    found = Matrices(checkpoint)
    scale = np.linspace(0.5, 2, 192).astype("f4")
    step = Step(name="columns", arrays=(SideArray(name="smooth", element=FP32, shape=(192,)),))
    number_format = replace(INT8_ROW, transforms=(step,))
    codes = quantize(found[name] / scale, INT8_ROW)
    weight = QuantizedTensor(
        number_format=number_format,
        codes={**{k: np.asarray(v) for k, v in codes.items()}, "smooth": scale.view("u4")},
    )
    tensors = {**dict(found.others()), **dict(found), name: weight}
    jentropy.save(tmp_path / "x", tensors, beside=models.quantizing.beside(checkpoint))
    written = jentropy.open_checkpoint(tmp_path / "x")
    model = models.load(tmp_path / "x", compute_dtype="float32")
    model = activations.simulated(model, "int8", written)
    kind = next(k for k, members in enumerate(model.members) if 3 in members)
    around = model.layers[kind].mlp.up_proj.around
    at = model.members[kind].index(3)
    np.testing.assert_array_equal(around.arrays[0].get_value()[at], scale)
    assert (np.delete(around.arrays[0].get_value(), at, axis=0) == 1).all()
    x = np.random.default_rng(0).normal(size=(2, 192)).astype("f4")
    one = Rounded(around.inputs, (step,), (scale,))
    rounded = np.asarray(one(lambda x: x, jnp.asarray(x)))
    steps = np.abs(x * scale).max(1, keepdims=True) / 127 / scale
    assert (np.abs(rounded - x) <= 0.51 * steps).all()
