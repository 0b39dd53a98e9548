"""`jentropy quantize`: what it writes is a model like any other."""

from __future__ import annotations

import json

import jax.numpy as jnp
import numpy as np
import pytest

import jentropy
from jentropy import models
from jentropy.bench import rate_distortion
from jentropy.cli.main import main
from jentropy.errors import DestinationError
from jentropy.models.matrices import Matrices
from jentropy.quantization import RECIPES

pytestmark = pytest.mark.usefixtures("compiled_quickly")


@pytest.fixture(scope="module")
def source(fixtures):
    return fixtures / "models" / "phi3"  # whose q, k and v are one tensor


@pytest.fixture(scope="module")
def quantised(source, tmp_path_factory):
    base, delta, path = (tmp_path_factory.mktemp("quantised") / n for n in ("base", "delta", "q"))
    jentropy.compress_checkpoint(source, base)
    jentropy.compress_checkpoint(source, delta, base=base)
    told = ["quantize", str(delta), str(path), "--recipe", "rtn", "--quiet"]
    assert main([*told, "--base", str(base)]) == 0
    return path


def test_what_is_written(source, quantised, tmp_path):
    checkpoint = jentropy.open_checkpoint(quantised)
    dense = Matrices(jentropy.open_checkpoint(source))
    assert set(dense) < set(checkpoint.names())
    for name, weight in dense.items():
        assert checkpoint.tensor(name).format == "INT4"
        error = np.abs(checkpoint.tensor(name).dequantize() - weight).max()
        assert 0 < error < 0.1 * np.abs(weight).max()
    others = dict(dense.others())
    for name, values in others.items():
        np.testing.assert_array_equal(checkpoint.tensor(name).values(), values)
    assert jentropy.verify(quantised)
    jentropy.decompress_checkpoint(quantised, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "phi3"


def test_it_runs_as_what_it_says(source, quantised):
    ids = np.arange(12).reshape(1, 12)
    model = models.load(quantised, compute_dtype=jnp.float32)
    dense = models.load(quantised, compute_dtype=jnp.float32, dense=True)
    np.testing.assert_array_equal(model(ids), dense(ids))
    parts = Matrices(jentropy.open_checkpoint(source)).parts
    tensors = jentropy.open_checkpoint(quantised)
    decoded = {name: tensors.tensor(name).dequantize() for name in parts}
    own = models.load(source, compute_dtype=jnp.float32)
    replaced = models.quantizing.with_weights(own, parts, decoded)
    np.testing.assert_allclose(replaced(ids), model(ids), rtol=1e-5, atol=1e-5)


def test_recipes_are_compared(source, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(rate_distortion, "SIZE", 64)

    def rows(_model, _part, sequences: int) -> np.ndarray:
        asked.append(sequences)
        return np.arange(48).reshape(2, 24)

    asked: list[int] = []
    monkeypatch.setattr(rate_distortion.Model, "_rows", rows)
    files = tmp_path / "f.json", tmp_path / "f.png"
    told = ["bench", "--suite", "rate-distortion", "--source", str(source), "--sequences", "3"]
    told += ["--recipes", "rtn-mxfp4", "--json", str(files[0])]
    assert main([*told, "--png", str(files[1])]) == 0
    assert files[1].stat().st_size > 1000
    assert asked == [3]
    [row] = json.loads(files[0].read_text())["results"]
    figures = row["figures"]
    assert row["name"] == "rtn-mxfp4"
    assert 3 < figures["model_bits"] < 5  # with tables of small matrices
    assert 4.25 < figures["stored_bits"] < 4.5  # rows are not of whole groups
    assert 0.005 < figures["gaussian_relmse"] < 0.02
    assert figures["gaussian_gap_bits"] > 0.2
    assert 0 < figures["kl"] < figures["inputs_kl"] < 1  # inputs are rounded too
    assert main(["bench", "--suite", "load", "--recipes", "rtn"]) == 2
    assert "suite rate-distortion" in capsys.readouterr().err


def test_unknown_recipes(source, tmp_path, capsys):
    quantize = ["quantize", str(source), str(tmp_path / "x"), "--recipe", "gptk"]
    for told in (quantize, ["bench", "--suite", "rate-distortion", "--recipes", "rtn,gptk"]):
        with pytest.raises(SystemExit, match="2"):
            main(told)
        assert "expected gptq" in capsys.readouterr().err


@pytest.mark.parametrize("tool", [None, "gptq"])
def test_what_cannot_be_written_is_said_before_the_work(tool, fixtures, quantised, monkeypatch):
    monkeypatch.setattr(models.quantizing, "quantize_weights", None)
    with pytest.raises(DestinationError, match="exists"):
        models.quantizing.quantize_checkpoint(
            fixtures / "llama_fp16", quantised, RECIPES["rtn"], tool=tool
        )
