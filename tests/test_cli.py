"""The command line: what it prints, what it writes, how it fails."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import numpy as np
import pytest

import jentropy
from jentropy.cli import main as cli


def run(capsys, *argv) -> tuple[int, str, str]:
    code = cli.main([str(a) for a in argv])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main([command, "--help"])
    assert stopped.value.code == 0
    assert "usage: jentropy" in capsys.readouterr().out


def test_the_whole_way(fixtures, tmp_path, capsys):
    source, dst = fixtures / "qwen3_bf16_tied", tmp_path / "dst"
    code, out, err = run(capsys, "compress", source, dst)
    assert (code, err) == (0, "")
    assert "bits per weight" in out
    code, out, err = run(capsys, "verify", dst, "--against", source)
    assert (code, err) == (0, "")
    assert "sound, the same as" in out
    code, out, _ = run(capsys, "inspect", dst, "--json", tmp_path / "i.json")
    assert code == 0
    assert "model.layers.0.mlp.down_proj.weight" in out
    content = json.loads((tmp_path / "i.json").read_text())
    assert content["weights"] == 328_448
    assert {"archive_bytes", "other_files_bytes", "per_tensor_joint_bits", "tensors"} <= set(
        content
    )
    assert run(capsys, "decompress", dst, tmp_path / "out") == (0, "", "")
    for file in source.iterdir():
        assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes()


def test_one_step_of_a_manager(tmp_path, capsys):
    import orbax.checkpoint as ocp

    root, dst = tmp_path / "root", tmp_path / "dst"
    with ocp.CheckpointManager(root) as manager:
        for step in (1, 20):
            manager.save(step, args=ocp.args.StandardSave({"w": np.full(step, 1, np.float16)}))
    assert run(capsys, "compress", root, dst, "--step", 20)[0] == 0
    assert run(capsys, "verify", dst, "--against", root, "--step", 20)[0] == 0
    code, _, err = run(capsys, "verify", dst, "--against", root)
    assert (code, err.count("\n")) == (1, 1)
    assert "only in the source" in err
    code, out, _ = run(capsys, "analyze", root, "--step", 20)
    assert code == 0
    assert "20 weights" in out
    code, _, err = run(capsys, "analyze", root, "--step", 3)
    assert code == 2
    assert "one of 1, 20" in err


def test_analyze_writes_the_contracts_json(fixtures, tmp_path, capsys):
    source = fixtures / "llama_bf16"
    code, out, _ = run(capsys, "analyze", source, "--json", tmp_path / "a.json")
    assert code == 0
    assert "exponent" in out
    content = json.loads((tmp_path / "a.json").read_text())
    assert set(content) == {"source", "weights", "formats", "tensors", "magnitude"}
    row = content["formats"]["BF16"]
    assert set(row) == {
        *("weights", "allocated_bits", "entropy_bits", "joint_entropy_bits", "fields"),
        "used_fraction",
    }
    assert row["allocated_bits"] == 16.0
    assert row["used_fraction"] == pytest.approx(row["entropy_bits"] / 16)
    fields = row["fields"]
    assert [fields[k]["allocated_bits"] for k in ("sign", "exponent", "mantissa")] == [1, 8, 7]
    assert sum(f["entropy_bits"] for f in fields.values()) == pytest.approx(row["entropy_bits"])
    tensor = content["tensors"][0]
    assert set(tensor) == {
        *("name", "format", "dialect", "shape", "entropy_bits", "joint_entropy_bits"),
    }
    assert set(content["magnitude"]) == {
        *("log2_edges", "counts", "mean_log2", "std_log2", "small_fraction"),
    }


def test_analyze_compares_several(fixtures, tmp_path, capsys):
    sources = [fixtures / name for name in ("llama_fp16", "llama_fp32")]
    code, out, _ = run(capsys, "analyze", *sources, "--json", "-")
    assert code == 0
    reports = json.loads(out)["reports"]
    assert [list(r["formats"]) for r in reports] == [["FP16"], ["FP32"]]
    assert reports[1]["formats"]["FP32"]["joint_entropy_bits"] is None


def test_analyze_draws(fixtures, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="extra report is not installed")
    page, folder = tmp_path / "new" / "report.html", tmp_path / "png"
    sources = [fixtures / "llama_bf16", fixtures / "llama_fp32"]
    code, _, err = run(capsys, "analyze", *sources, "--html", page, "--png", folder)
    assert (code, err) == (0, "")
    text = page.read_text()
    assert text.count("<svg") == 5
    assert not re.search(r"<script|<link|(src|href)=.http", text), "it needs nothing else"
    names = sorted(p.name for p in folder.iterdir())
    assert names == ["bits-0.png", "bits-1.png", "magnitude.png", "tensors-0.png", "tensors-1.png"]
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in folder.iterdir())


def test_generate(tmp_path, capsys):
    jentropy.compress_checkpoint(jentropy.models.BUNDLED, tmp_path / "dst")
    outputs = []
    for source in (jentropy.models.BUNDLED, tmp_path / "dst"):
        code, out, err = run(
            capsys, "generate", source, "--prompt", "import os", "--max-new-tokens", 5, "--json"
        )
        assert (code, err) == (0, "")
        outputs.append(json.loads(out))
    assert outputs[0] == outputs[1]
    assert outputs[0]["text"].startswith("import os")
    assert outputs[0]["prompt"] == "import os"
    code, out, _ = run(capsys, "generate", source, "--prompt", "import os", "--max-new-tokens", 5)
    assert out.strip() == outputs[0]["text"].strip()


def test_demo_shows_the_whole_way(tmp_path, capsys):
    code, out, err = run(capsys, "demo", "--out", tmp_path / "demo")
    assert (code, err) == (0, "")
    for part in (
        "exponent",
        "compressed checkpoint on disk",
        "verified",
        "bitwise",
        "class Parser",
    ):
        assert part in out
    assert (tmp_path / "demo" / "report.html").is_file()


@pytest.mark.parametrize("suite", ["archive", "formats", "load", "matmul", "analyze"])
def test_bench_measures(suite, tmp_path, capsys, monkeypatch):
    from jentropy.bench import matmul, measure

    monkeypatch.setattr(measure, "REPEATS", 1)
    monkeypatch.setattr(matmul, "SHAPES", ((64, 64),))
    file = tmp_path / "b.json"
    picture = ["--png", tmp_path / "b.png"] if suite == "archive" else []
    code, out, err = run(capsys, "bench", "--suite", suite, "--json", file, *picture)
    assert (code, err) == (0, "")
    assert all(path.stat().st_size > 1000 for path in picture[1:])
    content = json.loads(file.read_text())
    assert content["suite"] == suite
    assert content["versions"]["jax"]
    figures = [item for row in content["results"] for item in row["figures"].items()]
    assert all(v > 0 or key == "error_db" for key, v in figures)
    if suite == "matmul":
        assert "reference backend" in out
    if suite == "archive":
        rows = {r["name"]: r["figures"]["bits_per_weight"] for r in content["results"]}
        assert rows["jentropy"] < rows["jentropy on disk"] < rows["Orbax"] < rows["raw"]
        # Scales of rows and columns are worth what tables and lanes cost.
        assert rows["jentropy"] < rows["joint entropy, per tensor"] + 0.01


def test_errors_are_one_line_and_code_2(fixtures, tmp_path, capsys):
    pickle = tmp_path / "model.bin"
    pickle.write_bytes(b"\x80\x04.")
    packed = tmp_path / "packed"
    jentropy.compress_checkpoint(fixtures / "llama_fp16", packed)
    for argv in (
        ["analyze", tmp_path / "none"],
        ["analyze", pickle],
        ["compress", tmp_path / "none", tmp_path / "x"],
        ["compress", fixtures / "llama_fp16", packed],
        ["decompress", fixtures / "llama_fp16", tmp_path / "x"],
        ["decompress", packed, packed],
        ["verify", tmp_path / "none"],
        ["inspect", tmp_path / "none"],
        ["generate", packed, "--prompt", "x"],  # has no tokenizer
        ["inspect", packed, "--json", tmp_path / "no" / "such" / "folder.json"],
        ["bench", "--source", tmp_path / "none"],
        ["bench", "--suite", "load", "--png", tmp_path / "b.png"],
    ):
        code, out, err = run(capsys, *argv)
        assert code == 2, argv
        assert out == "" or argv[0] == "inspect"
        assert err.count("\n") == 1, err
        assert err.startswith("jentropy: ")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.bin", "packed"]


def test_damage_that_verify_finds_is_code_1(fixtures, tmp_path, capsys):
    packed = tmp_path / "packed"
    jentropy.compress_checkpoint(fixtures / "llama_fp16", packed)
    code, _, err = run(capsys, "verify", packed, "--against", fixtures / "llama_fp32")
    assert (code, err.count("\n")) == (1, 1)
    chunk = packed / "state" / "bundles.00000" / "c" / "0"
    data = bytearray(chunk.read_bytes())
    data[20_000] ^= 4
    chunk.write_bytes(data)
    code, _, err = run(capsys, "verify", packed)
    assert (code, err.count("\n")) == (1, 1)
    assert "checksum" in err
    code, _, err = run(capsys, "decompress", packed, tmp_path / "out")
    assert code == 2
    assert not (tmp_path / "out").exists()


def test_as_a_process(fixtures, tmp_path):
    """Exit codes and a quiet pipe, as a script sees them."""

    def call(*argv):
        return subprocess.run(
            [sys.executable, "-m", "jentropy.cli.main", *map(str, argv)],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            check=False,
        )

    done = call("compress", fixtures / "llama_fp32", "dst")
    assert (done.returncode, done.stderr) == (0, "")
    done = call("compress", fixtures / "llama_fp32", "dst")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    done = call("nonsense")
    assert done.returncode == 2


def test_names_are_not_markup(tmp_path, capsys):
    folder = tmp_path / "m[b]"
    folder.mkdir()
    header = json.dumps({"x[/b]": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}}).encode()
    (folder / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    code, out, err = run(capsys, "compress", folder, tmp_path / "d[red]")
    assert (code, err) == (0, "")
    assert "d[red]" in out
    code, out, err = run(capsys, "inspect", tmp_path / "d[red]")
    assert (code, err) == (0, "")
    assert "x[/b]" in out


def test_what_nobody_thought_of_is_one_line_too(fixtures, capsys, monkeypatch):
    def broken(*_, **__):
        raise ZeroDivisionError("never\nmind")

    monkeypatch.setattr(jentropy, "inspect", broken)
    code, _, err = run(capsys, "inspect", fixtures)
    assert (code, err.count("\n")) == (2, 1)
    assert "ZeroDivisionError: never mind" in err
    monkeypatch.setenv("JENTROPY_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        cli.main(["inspect", str(fixtures)])


def test_values_of_the_report_are_plain_numbers(fixtures):
    report = jentropy.analyze(fixtures / "llama_fp32").to_json()
    assert json.loads(json.dumps(report)) == report
    assert not any(isinstance(v, np.generic) for v in report["magnitude"]["counts"])
