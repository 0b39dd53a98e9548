"""The format on disk: golden files, read by jentropy and by a decoder written from FORMAT.md."""

from __future__ import annotations

import ast
import json
import shutil
import zlib

import numpy as np
import pytest

import jentropy
from jentropy import errors
from jentropy.checkpoints.store import Store
from jentropy.codecs import planes, scaled, sparse

from . import plain_decoder
from .conftest import HERE, read_tree, same_tree
from .golden import make
from .golden.comparing import same_tensors

GOLDEN = HERE / "golden"
EXPECTED = json.loads((GOLDEN / "invalid" / "expected.json").read_text())
TREES = ("tree", "pruned", "grid", "sparse")
FIXTURE = "gptoss_mxfp4"
SOURCE = HERE / "fixtures" / "quantised" / FIXTURE


def tree(name: str = "tree") -> dict[str, np.ndarray]:
    told = json.loads((GOLDEN / f"{name}.json").read_text())
    codes = np.load(GOLDEN / f"{name}.npz")
    return {
        key: codes[key].view(np.dtype(jentropy.containers.tensor.dtype_named(dtype))).reshape(shape)
        for key, (dtype, shape) in told.items()
    }


def test_the_plain_decoder_is_short_and_knows_nothing_of_us():
    text = (HERE / "plain_decoder.py").read_text()
    assert len(text.splitlines()) < 355  # of six codecs
    names = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module.partition(".")[0])
    assert not names & {"jax", "jaxlib", "jentropy", "ml_dtypes", "tests"}


@pytest.mark.parametrize("tree_name", TREES)
def test_golden_trees_are_read_by_both(tree_name):
    expected = tree(tree_name)
    ours = jentropy.decompress(jentropy.load(GOLDEN / "valid" / tree_name))
    theirs = dict(plain_decoder.read(GOLDEN / "valid" / tree_name))
    assert ours.keys() == theirs.keys() == expected.keys()
    for name, values in expected.items():
        assert ours[name].dtype == values.dtype
        assert ours[name].shape == values.shape
        assert ours[name].tobytes() == values.tobytes() == theirs[name]


def test_golden_trees_take_every_branch():
    codecs = {e.name: e.header.coding.codec for e in Store(GOLDEN / "valid" / "tree").index.tensors}
    assert set(codecs.values()) == {"context", "planes", "stored"}
    assert codecs["bf16"] == codecs["fp16"] == "context"
    second = {}
    for e in Store(GOLDEN / "valid" / "pruned").index.tensors:
        second[e.name] = planes.planes_of(next(e.header.spans()))[1].omitted
    signed = {name: omitted.signed for name, omitted in second.items()}
    assert signed == {name: name.endswith("signs") for name in tree("pruned")}
    heads = {}
    for e in Store(GOLDEN / "valid" / "sparse").index.tensors:
        assert e.header.coding.codec == "sparse"
        heads[e.name] = sparse.head_of(next(e.header.spans()))
    assert {head.others.codec for head in heads.values()} == {"context", "planes"}
    signed = {name: head.signed for name, head in heads.items()}
    assert signed == {name: name.endswith("signs") for name in tree("sparse")}
    for e in Store(GOLDEN / "valid" / "grid").index.tensors:
        heads[e.name] = scaled.head_of(next(e.header.spans()))
        assert e.header.coding.codec == "scaled"
    assert [heads[name].escapes for name in ("rows", "both")] == [True, False]
    assert [heads[name].classes.columns.any() for name in ("rows", "both")] == [False, True]


def test_a_golden_delta_is_read_by_both(tmp_path):
    golden, base, expected = GOLDEN / "valid" / "delta", GOLDEN / "valid" / "tree", make.moved()
    assert same_tree(jentropy.decompress(jentropy.load(golden, base=base)), expected)
    theirs = dict(plain_decoder.read(golden, base))
    assert theirs == {name: values.tobytes() for name, values in expected.items()}
    forms = {entry.header.delta for entry in Store(golden).index.tensors}
    assert forms == {"", "xor", "difference"}
    jentropy.save(tmp_path / "again", expected, base=base)
    again = Store(tmp_path / "again").index.tensors
    assert [entry.header for entry in again] == [e.header for e in Store(golden).index.tensors]


def test_golden_files_are_read_by_both(tmp_path):
    expected = read_tree(SOURCE)
    assert dict(plain_decoder.files(GOLDEN / "valid" / FIXTURE)) == expected
    jentropy.decompress_checkpoint(GOLDEN / "valid" / FIXTURE, tmp_path / "out")
    assert read_tree(tmp_path / "out") == expected


@pytest.mark.filterwarnings("ignore:Sharding info not provided")
def test_golden_steps_are_read_by_both_and_by_orbax(tmp_path):
    import orbax.checkpoint as ocp

    golden, expected = GOLDEN / "valid" / "steps", make.step()
    ours = jentropy.decompress(jentropy.load(golden))
    theirs = dict(plain_decoder.read(golden))
    for step in ("1", "2"):
        assert same_tree(ours[step], expected)
        weight = expected["state"]["params"]["w"]
        assert theirs[f"{step}.state.params.w"] == weight.tobytes()
    texts = dict(plain_decoder.files(golden))
    assert json.loads(texts["2/config/metadata"]) == expected["config"]
    jentropy.decompress_checkpoint(golden, tmp_path / "out")
    with ocp.CheckpointManager(tmp_path / "out") as manager:
        args = ocp.args.Composite(state=ocp.args.PyTreeRestore(), config=ocp.args.JsonRestore())
        found = manager.restore(2, args=args)
    assert same_tree({"state": found.state, "config": found.config}, expected)


# What takes less since there is codec `sparse`, and since planes are judged with their heads.
CHEAPER = {
    "pruned": {"bf16", "bf16_signs", "fp32", "fp32_signs"},
    "sparse": {"fp16", "fp16_signs"},
    "tree": {"int64"},
}


@pytest.mark.parametrize("name", [*TREES, FIXTURE])
def test_the_same_input_gives_the_golden_bytes(name, tmp_path):
    """On every version of Python, NumPy and JAX, with any number of cores."""
    if name in TREES:
        jentropy.save(tmp_path / "again", tree(name))
    else:
        jentropy.compress_checkpoint(SOURCE, tmp_path / "again")
    golden, again = Store(GOLDEN / "valid" / name), Store(tmp_path / "again")
    assert len(golden.index.bundles) == len(again.index.bundles) == 1
    cheaper = CHEAPER.get(name, set())
    same_tensors(golden, again, cheaper)
    if cheaper or golden.index.blobs:  # which zlib's releases may deflate differently
        return
    assert (again.array("bundles.00000") == golden.array("bundles.00000")).all()
    contents = [json.loads(zlib.decompress(s.array("index").tobytes())) for s in (golden, again)]
    assert [c.pop("jentropy") for c in contents] == [golden.index.version, again.index.version]
    assert contents[0] == contents[1]


@pytest.mark.parametrize("lost", ["none", "index", "copy"])
def test_either_index_of_version_2_is_enough(lost, tmp_path):
    folder = tmp_path / "t"
    shutil.copytree(GOLDEN / "valid" / "second", folder)
    if lost != "none":
        make.flip(folder / f"state/{lost}/c/0", 30)
        with pytest.raises(errors.ChecksumError, match=lost):
            jentropy.verify(folder)
        shutil.rmtree(folder / "state" / lost)
    else:
        jentropy.verify(folder)
    (values,) = make.small().values()
    assert jentropy.decompress(jentropy.load(folder))["w"].tobytes() == values.tobytes()
    assert dict(plain_decoder.read(folder)) == {"w": values.tobytes()}


@pytest.mark.parametrize("name", EXPECTED)
def test_golden_invalid_files_are_refused(name, tmp_path):
    folder = GOLDEN / "invalid" / name
    kind = getattr(errors, EXPECTED[name]["error"])
    with pytest.raises(kind, match=EXPECTED[name]["message"]):
        jentropy.decompress(jentropy.load(folder))
    with pytest.raises(kind, match=EXPECTED[name]["message"]):
        jentropy.verify(folder)
    with pytest.raises((plain_decoder.Corrupt, OSError, KeyError, ValueError, zlib.error)):
        list(plain_decoder.read(folder))
    assert not list(tmp_path.iterdir())


def test_fixtures_of_every_kind_are_read_by_both(tmp_path):
    fixtures = HERE / "fixtures"
    for source in (fixtures / "llama_fp32", fixtures / "quantised" / "gptq_v1_asym_act"):
        shutil.rmtree(tmp_path / "dst", ignore_errors=True)
        jentropy.compress_checkpoint(source, tmp_path / "dst")
        assert dict(plain_decoder.files(tmp_path / "dst")) == read_tree(source)
