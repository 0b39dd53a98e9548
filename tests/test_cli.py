"""The command line: what it prints, what it writes, how it fails."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest
import rich.progress

import jentropy
from jentropy import models
from jentropy.checkpoints import decompressing, writer
from jentropy.cli import main as cli
from jentropy.cli import progress
from jentropy.codecs import threads
from jentropy.errors import CheckError

from .conftest import ROOT, read_tree


@pytest.fixture(scope="module")
def packed_one(fixtures, tmp_path_factory):
    """A compressed checkpoint."""
    dst = tmp_path_factory.mktemp("packed") / "dst"
    jentropy.compress_checkpoint(fixtures / "qwen3_bf16_sharded", dst)
    return dst


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
    assert {"source", "weights", "formats", "tensors", "magnitude"} <= set(content)
    row = content["formats"]["BF16"]
    assert set(row) >= {
        *("weights", "allocated_bits", "entropy_bits", "joint_entropy_bits", "fields"),
        "used_fraction",
    }
    assert row["allocated_bits"] == 16.0
    assert row["used_fraction"] == pytest.approx(row["entropy_bits"] / 16)
    fields = row["fields"]
    assert [fields[k]["allocated_bits"] for k in ("sign", "exponent", "mantissa")] == [1, 8, 7]
    assert sum(f["entropy_bits"] for f in fields.values()) == pytest.approx(row["entropy_bits"])
    tensor = content["tensors"][0]
    assert set(tensor) >= {
        *("name", "format", "dialect", "shape", "entropy_bits", "joint_entropy_bits"),
    }
    assert set(content["magnitude"]) >= {
        *("log2_edges", "counts", "mean_log2", "std_log2", "small_fraction"),
    }


def test_analyze_compares_several(fixtures, tmp_path, capsys):
    sources = [fixtures / name for name in ("llama_fp16", "llama_fp32")]
    code, out, _ = run(capsys, "analyze", *sources, "--json", "-")
    assert code == 0
    told = json.loads(out)
    reports = told["reports"]
    assert set(told["comparison"]) == {"sources", "distances", "fields"}
    assert [list(r["formats"]) for r in reports] == [["FP16"], ["FP32"]]
    assert reports[1]["formats"]["FP32"]["joint_entropy_bits"] is None


def test_analyze_draws(fixtures, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="extra report is not installed")
    page, folder, rows = tmp_path / "new" / "report.html", tmp_path / "png", tmp_path / "t.csv"
    sources = [fixtures / "llama_bf16", fixtures / "llama_fp32"]
    code, _, err = run(
        capsys, "analyze", *sources, "--html", page, "--png", folder, "--csv", rows, "--no-contexts"
    )
    assert (code, err) == (0, "")
    assert "llama_fp32" in page.read_text()
    assert str(fixtures) not in page.read_text(), "no path of a machine"
    names = sorted(p.name for p in folder.iterdir())
    assert names == ["bits.png", "layers-0.png", "layers-1.png", "magnitude.png"]
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in folder.iterdir())
    assert len(rows.read_text().splitlines()) == 1 + 2 * 21


@pytest.mark.parametrize("option", ["--html", "--csv"])
def test_analyze_says_where_it_cannot_write(fixtures, tmp_path, capsys, option):
    (tmp_path / "file").write_text("")
    code, _, err = run(
        capsys, "analyze", fixtures / "llama_fp16", option, tmp_path / "file" / "out"
    )
    assert code == 2
    assert "cannot write" in err
    assert str(tmp_path / "file") in err


def test_generate(tmp_path, capsys):
    jentropy.compress_checkpoint(jentropy.models.BUNDLED, tmp_path / "base")
    jentropy.compress_checkpoint(jentropy.models.BUNDLED, tmp_path / "dst", base=tmp_path / "base")
    outputs = []
    for source in ([jentropy.models.BUNDLED], [tmp_path / "dst", "--base", tmp_path / "base"]):
        options = ["--prompt", "import os", "--max-new-tokens", 5]
        code, out, err = run(capsys, "generate", *source, *options, "--json")
        assert (code, err) == (0, "")
        outputs.append(json.loads(out))
    assert outputs[0] == outputs[1]
    assert outputs[0]["text"].startswith("import os")
    assert outputs[0]["prompt"] == "import os"
    code, out, _ = run(capsys, "generate", *source, *options)
    assert out.strip() == outputs[0]["text"].strip()


def test_demo_prints_what_the_readme_shows(tmp_path, capsys):
    code, out, err = run(capsys, "demo", "--out", tmp_path / "demo")
    assert (code, err) == (0, "")
    (shown,) = re.findall(r"^```text\n(.*?)^```$", (ROOT / "README.md").read_text(), re.M | re.S)
    on_disk = "compressed checkpoint on disk"  # whose index has times
    assert {line for line in shown.splitlines() if on_disk not in line} <= set(out.splitlines())
    bits = [re.search(rf"{on_disk} .* (10\.\d+) ", text) for text in (shown, out)]
    assert abs(float(bits[0][1]) - float(bits[1][1])) < 0.002
    assert "class Parser" in out
    assert (tmp_path / "demo" / "report.html").is_file()


def test_missing_matplotlib_is_said_before_the_work(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delattr(jentropy, "analyze")
    code, _, err = run(capsys, "analyze", tmp_path, "--png", tmp_path)
    assert (code, err.count("\n")) == (2, 1)
    assert "matplotlib" in err


@pytest.mark.parametrize("command", [["generate", "--prompt", "x"], ["evaluate"]])
def test_a_missing_tokenizer_is_said_before_the_work(command, fixtures, capsys, monkeypatch):
    monkeypatch.delattr(models, "load")
    code, _, err = run(capsys, *command, fixtures / "llama_fp16")
    assert (code, err.count("\n")) == (2, 1)
    assert "no tokenizer.json" in err


def test_demo_says_how_logits_compare(monkeypatch):
    from jentropy.cli import demo

    dense = jnp.array([[1.0, -2.0]])
    assert demo.agreement(dense, dense) == "bitwise those of the uncompressed weights"
    with pytest.raises(CheckError, match="differ by"):  # the reference backend keeps the promise
        demo.agreement(dense, dense + 1e-6)
    monkeypatch.setattr(demo, "default_backend", lambda: "gpu")
    assert "within 5.0e-04" in demo.agreement(dense, dense + 1e-3)
    with pytest.raises(CheckError, match="differ by"):
        demo.agreement(dense, dense + 0.1)
    with pytest.raises(CheckError, match="nan"):
        demo.agreement(dense, dense * jnp.nan)


@pytest.mark.parametrize("suite", ["archive", "formats", "load", "matmul", "analyze"])
def test_bench_measures(suite, tmp_path, capsys, monkeypatch):
    from jentropy.bench import load, matmul, measure

    monkeypatch.setattr(measure, "REPEATS", 1)
    monkeypatch.setattr(load, "REPEATS", 1)
    monkeypatch.setattr(matmul, "SMALL_SHAPES", ((64, 64),))
    file = tmp_path / "b.json"
    picture = ["--png", tmp_path / "b.png"] if suite == "archive" else []
    small = []
    if suite == "formats":  # each compiles for every shape
        values = np.random.default_rng(0).standard_normal((256, 512)).astype(np.float32)
        jentropy.save(tmp_path / "one", {"w": jnp.asarray(values, jnp.bfloat16)})
        small = ["--source", tmp_path / "one"]
    code, out, err = run(capsys, "bench", "--suite", suite, "--json", file, *picture, *small)
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
    none = tmp_path / "none"
    for argv in (
        ["analyze", none],
        ["analyze", pickle],
        ["compress", none, tmp_path / "x"],
        ["compress", fixtures / "llama_fp16", packed],
        ["decompress", fixtures / "llama_fp16", tmp_path / "x"],
        ["decompress", packed, packed],
        ["verify", none],
        ["verify", packed, "--against", none],
        ["inspect", none],
        ["decompress", none, tmp_path / "x"],
        ["generate", none, "--prompt", "x"],
        ["analyze", ""],
        ["generate", packed, "--prompt", "x"],  # has no tokenizer
        ["inspect", packed, "--json", tmp_path / "no" / "such" / "folder.json"],
        ["bench", "--source", none],
        ["bench", "--suite", "load", "--png", tmp_path / "b.png"],
    ):
        code, out, err = run(capsys, *argv)
        assert code == 2, argv
        assert out == "" or argv[0] == "inspect"
        assert err.count("\n") == 1, err
        assert err.startswith("jentropy: ")
        if none in argv or "" in argv:
            assert "no such file or directory" in err
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
            [sys.executable, "-m", "jentropy", *map(str, argv)],
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


def test_version(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"jentropy {jentropy.__version__}\n"


def test_arguments_that_cannot_be_are_told_what_may(capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["compress", "a", "b", "--distributed", "host:1,2"])
    assert "expected ADDRESS,COUNT,NUMBER" in capsys.readouterr().err
    assert run(capsys, "salvage", "a")[0] == 2
    assert run(capsys, "salvage", "a", "b", "--repair-from", "c")[2].endswith("found both\n")


def test_quiet_leaves_errors_and_what_was_asked_for(fixtures, tmp_path, capsys):
    source = tmp_path / "source"
    shutil.copytree(fixtures / "llama_fp16", source)
    shutil.copy(source / "model.safetensors", source / "extra.safetensors")  # gives a note
    dst = tmp_path / "dst"
    assert "extra" in run(capsys, "analyze", source)[2]
    for argv in (
        ["analyze", source],
        ["compress", source, dst],
        ["verify", dst, "--against", source],
        ["inspect", dst],
        ["decompress", dst, tmp_path / "out"],
    ):
        assert run(capsys, *argv, "--quiet") == (0, "", "")
    code, out, err = run(capsys, "inspect", dst, "-q", "--json", "-")
    assert (code, err) == (0, "")
    assert json.loads(out)["notes"]
    code, out, err = run(capsys, "compress", source, dst, "-q")
    assert (code, out, err.count("\n")) == (2, "", 1)


def test_overwrite_replaces_its_own_kind_only(fixtures, tmp_path, capsys):
    old, new = fixtures / "llama_fp32", fixtures / "llama_fp16"
    dst, out = tmp_path / "dst", tmp_path / "out"
    (tmp_path / "empty").mkdir()
    assert run(capsys, "compress", old, tmp_path / "empty", "--overwrite")[0] == 0
    assert run(capsys, "compress", old, dst, "--overwrite")[0] == 0
    code, _, err = run(capsys, "compress", new, dst)
    assert (code, "--overwrite" in err) == (2, True)
    assert run(capsys, "decompress", dst, out, "--overwrite")[0] == 0
    assert run(capsys, "compress", new, dst, "--overwrite")[0] == 0
    assert run(capsys, "verify", dst, "--against", new)[0] == 0
    assert run(capsys, "decompress", dst, out, "--overwrite") == (0, "", "")
    assert read_tree(out) == read_tree(new)
    (out / "notes.txt").write_text("mine")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine").touch()
    (tmp_path / "file").touch()
    before = read_tree(tmp_path)
    for argv in (
        ["decompress", dst, out],
        ["decompress", dst, tmp_path / "file"],
        ["decompress", dst, tmp_path],  # holds the checkpoint
        ["compress", new, tmp_path / "other"],
        ["compress", new, tmp_path / "file"],
        ["compress", out, tmp_path],
    ):
        code, _, err = run(capsys, *argv, "--overwrite")
        assert (code, err.count("\n")) == (2, 1), argv
    assert read_tree(tmp_path) == before


def test_a_failed_overwrite_leaves_the_old_one(fixtures, packed_one, tmp_path, capsys):
    dst = tmp_path / "dst"
    shutil.copytree(packed_one, dst)
    source = tmp_path / "source"
    shutil.copytree(fixtures / "llama_fp16", source)
    data = (source / "model.safetensors").read_bytes()
    (source / "model.safetensors").write_bytes(data[:-1])
    assert run(capsys, "compress", source, dst, "--overwrite")[0] == 2
    assert read_tree(dst) == read_tree(packed_one)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dst", "source"]


def test_jobs_bound_the_threads(fixtures, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv(threads.JOBS, "1")
    monkeypatch.setenv("NPROC", "8")
    assert threads.count() == 1
    assert run(capsys, "compress", fixtures / "llama_fp16", tmp_path / "dst", "--jobs", 3)[0] == 0
    assert threads.count() == 3
    assert run(capsys, "verify", tmp_path / "dst", "--jobs", 10**7)[0] == 0
    assert threads.count() < 10**6
    for bad in ("0", "-1", "many", "1.5", ""):
        with pytest.raises(SystemExit) as stopped:
            cli.main(["verify", str(tmp_path / "dst"), "--jobs", bad])
        assert stopped.value.code == 2
        assert f"expected 1 or more, found {bad!r}" in capsys.readouterr().err
    monkeypatch.delenv(threads.JOBS)
    affinity = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count()))
    assert threads.count() == len(affinity(0))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Silent:
    """A session that adds nothing."""

    def __init__(self, model, tokenizer, **_):
        self.model, self.tokenizer = model, tokenizer

    def stream(self, prompt, most):
        self.answer = models.Answer(prompt_ids=prompt)
        yield from ()


LONG = {
    "generate": ["SRC", "--prompt", "x"],
    "analyze": ["SRC"],
    "compress": ["SRC", "NEW"],
    "decompress": ["DST", "NEW"],
    "verify": ["DST", "--against", "SRC"],
}


@pytest.mark.parametrize("command", LONG)
def test_long_commands_know_how_much_there_is(command, fixtures, packed_one, tmp_path, monkeypatch):
    """The bar ends where it was told that it would."""
    bars = []

    class Watched(progress.Bar):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            bars.append(self)
            self.done, self.total = 0, None

        def __call__(self, done):
            super().__call__(done)
            self.done += done

        def expect(self, total, done):
            super().expect(total, done)
            self.total = total

    monkeypatch.setattr(progress, "Bar", Watched)
    monkeypatch.setattr(sys, "stderr", Terminal())
    tokenizer = types.SimpleNamespace(decode=lambda ids: "")
    monkeypatch.setattr(models, "load_tokenizer", lambda path: tokenizer)
    monkeypatch.setattr(models, "encode", lambda *_, **__: [1])
    monkeypatch.setattr(models, "Session", Silent)
    name = "qwen3_bf16_sharded"
    paths = {"SRC": fixtures / name, "DST": packed_one, "NEW": tmp_path / "new"}
    assert cli.main([command, *(str(paths.get(a, a)) for a in LONG[command])]) == 0
    assert [bar.done for bar in bars] == [bar.total for bar in bars]
    size = sum(map(len, read_tree(fixtures / name).values()))
    weights = jentropy.analyze(fixtures / name, contexts=False).weights
    expected = {"analyze": 2 * weights, "generate": weights}  # bytes of codes; weights
    assert bars[0].total == expected.get(command, size)


def test_a_bar_says_how_much_how_fast_and_how_long(monkeypatch):
    now = [0.0]
    bars = rich.progress.Progress(get_time=lambda: now[0], disable=True)
    bar = progress.Bar(bars, "x")
    column = progress.Figures("B")

    def shown() -> str:
        return str(column.render(bars.tasks[0]))

    assert shown() == "0 B"
    bar.expect(4_000_000_000, 1_000_000_000)
    assert shown() == "1.0 GB of 4.0 GB"
    now[0] = 10.0
    bar(500_000_000)
    assert shown() == "1.5 GB of 4.0 GB, 50.0 MB/s, 0:00:50 left"
    bar(2_500_000_000)
    assert shown() == "4.0 GB of 4.0 GB, 300.0 MB/s"
    assert progress.amount(1234, " weights") == "1.2 k weights"
    assert progress.amount(7, " weights") == "7 weights"


@pytest.mark.parametrize("command", ["compress", "decompress"])
def test_an_interrupt_says_what_it_left(
    command, fixtures, packed_one, tmp_path, capsys, monkeypatch
):
    source, dst = fixtures / "llama_fp16", tmp_path / "d s t"
    given = {"compress": source, "decompress": packed_one}[command]

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(writer.index_lib, "to_bytes", interrupt)
        patch.setattr(decompressing, "put_in_place", interrupt)
        code, _, err = run(capsys, command, given, dst)
    assert (code, err.count("\n")) == (130, 1)
    folder = tmp_path / f".d s t.jentropy-{command}"
    assert folder.is_dir()
    assert f"`rm -r '{folder}'`" in err
    assert "goes on from there" in err
    assert not dst.exists()
    assert run(capsys, command, given, dst)[0] == 0
    assert not folder.exists()


def test_sigterm_ends_as_an_interrupt_does(packed_one, tmp_path, capsys, monkeypatch):
    before = signal.getsignal(signal.SIGTERM)

    def terminate(*_, **__):
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(decompressing, "put_in_place", terminate)
    code, _, err = run(capsys, "decompress", packed_one, tmp_path / "dst")
    assert (code, err.count("\n")) == (130, 1)
    assert "goes on from there" in err
    assert [path.name for path in tmp_path.iterdir()] == [".dst.jentropy-decompress"]
    assert signal.getsignal(signal.SIGTERM) == before


def test_bits_per_weight_leave_out_what_is_no_weight(tmp_path, capsys):
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((64, 64)).astype(np.float16)
    codes = rng.integers(0, 2**31, (256, 256), dtype=np.int32)
    for folder, arrays in {"both": {"w": weights, "q": codes}, "raw": {"q": codes}}.items():
        (tmp_path / folder).mkdir()
        header, at = {}, 0
        for name, values in arrays.items():
            dtype = {"float16": "F16", "int32": "I32"}[values.dtype.name]
            offsets = [at, at + values.nbytes]
            header[name] = {"dtype": dtype, "shape": list(values.shape), "data_offsets": offsets}
            at += values.nbytes
        text = json.dumps(header).encode()
        data = b"".join(a.tobytes() for a in arrays.values())
        file = tmp_path / folder / "model.safetensors"
        file.write_bytes(len(text).to_bytes(8, "little") + text + data)
        code, out, _ = run(capsys, "compress", tmp_path / folder, tmp_path / f"{folder}.j")
        assert code == 0
        assert "1 RAW tensors (no weights)" in out
        assert ("no weights" if folder == "raw" else "4,096 weights in ") in out.split(":", 1)[1]
    both, raw = (jentropy.inspect(tmp_path / f"{name}.j") for name in ("both", "raw"))
    assert both.weights == 4096
    assert both.bits_per_weight < 20
    assert both.raw_bytes > codes.nbytes * 0.9
    assert both.to_json()["raw_tensors"] == 1
    on_disk = sum(map(len, read_tree(tmp_path / "both.j").values()))
    assert both.archive_bytes + both.other_files_bytes == on_disk
    assert (raw.weights, raw.bits_per_weight) == (0, None)
    assert json.loads(json.dumps(raw.to_json()))["bits_per_weight"] is None
    _, out, _ = run(capsys, "analyze", tmp_path / "both")
    assert "4,096 weights in 1 tensors, and 1 RAW tensors (no weights)" in out
    assert "RAW (65,536 numbers)" in out


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
