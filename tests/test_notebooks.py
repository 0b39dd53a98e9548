"""Every notebook runs from top to bottom."""

from __future__ import annotations

import json

import pytest

from .conftest import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, capsys):
    pytest.importorskip("matplotlib", reason="extra report is not installed")
    cells = json.loads(path.read_text())["cells"]
    names: dict = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [], "notebooks are committed without output"
            exec("".join(cell["source"]), names)
    assert "bits per weight on disk" in capsys.readouterr().out
