"""Every notebook runs from top to bottom, and says what it promises."""

from __future__ import annotations

import json

import jax
import pytest

from .conftest import ROOT

pytestmark = pytest.mark.usefixtures("compiled_quickly")

# What each prints, once its figures are there.
SAYS = {
    "convert_a_checkpoint": ("bits per weight on disk", "the same bytes: model.safetensors"),
    "entropy_study": ("MXFP4: 9", "column: 0.0", "kB in report.html"),
    "inference_on_colab_tpu": ("bit for bit the same: True", "tokens/s"),
    "lora_on_a_compressed_base": ("moo(grass", "the compressed base is unchanged: True"),
    "tpu_check": (
        "No TPU is here",
        "FP8 row: 0 wrong codes",
        "INT4 g128: 0 wrong codes",
        "speedup",
        "5 results in",
    ),
    "your_own_flax_model": ("the same outputs, bit for bit: True", "the same outputs: True"),
}


def test_all_notebooks_are_here():
    assert sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb")) == sorted(SAYS)


@pytest.mark.parametrize("name", SAYS)
def test_a_notebook_runs(name, capsys, monkeypatch):
    pytest.importorskip("matplotlib", reason="extra report is not installed")
    monkeypatch.setenv("MPLBACKEND", "agg")
    cells = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text())["cells"]
    names: dict = {}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for cell in cells:
            if cell["cell_type"] == "code":
                assert cell["outputs"] == [], "notebooks are committed without output"
                exec("".join(cell["source"]), names)
    printed = capsys.readouterr().out
    for text in SAYS[name]:
        assert text in printed
    assert "DIFFERS" not in printed
    assert "False" not in printed
