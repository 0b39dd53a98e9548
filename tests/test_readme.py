"""Every block of the README runs as it is printed."""

from __future__ import annotations

import re
import shlex
import shutil

import pytest

import jentropy
from jentropy import models
from jentropy.cli import evaluate, quantize
from jentropy.cli import main as cli

from .conftest import ROOT

BLOCKS = re.findall(r"^```(.*)\n([\s\S]*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE)
KINDS = {"sh", "python", "text"}  # the last is what a command prints


def blocks(kind: str) -> list[str]:
    return [text for name, text in BLOCKS if name == kind]


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    """A folder that has what the README names."""
    shutil.copytree(models.BUNDLED, tmp_path / "SRC")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_blocks_are_of_known_kinds():
    assert {kind for kind, _ in BLOCKS} == KINDS


def test_commands_run(scratch, monkeypatch, capsys):
    pytest.importorskip("matplotlib", reason="extra report is not installed")
    from jentropy.bench import measure

    monkeypatch.setattr(measure, "REPEATS", 1)
    for command in (quantize, evaluate):
        monkeypatch.setitem(command.ARGUMENTS["--sequences"], "default", 4)
        monkeypatch.setitem(command.ARGUMENTS["--length"], "default", 64)
    monkeypatch.setitem(evaluate.ARGUMENTS["--max-new-tokens"], "default", 4)
    for line in "".join(blocks("sh")).splitlines():
        program, *arguments = shlex.split(line, comments=True)
        assert program == "jentropy"
        code = cli.main(arguments)
        assert code == 0, f"{line}: {capsys.readouterr().err}"
    for file in (scratch / "SRC").iterdir():
        assert (scratch / "OUT" / file.name).read_bytes() == file.read_bytes()


def test_python_runs(scratch, fixtures):
    shutil.copytree(fixtures / "ct_fp8_block", scratch / "quantised model")
    jentropy.compress_checkpoint("SRC", "compressed checkpoint")
    (scratch / "SRC").rename(scratch / "path")
    for text in blocks("python"):
        exec(text, {})
