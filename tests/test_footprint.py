"""What models take of a device: counted from shapes, by a TPU's compiler, and while they load."""

from __future__ import annotations

import gc
import json
import math
import weakref

import jax
import numpy as np
import pytest
from flax import nnx

import jentropy
from jentropy import codecs
from jentropy.checkpoints.compressed import CompressedCheckpoint
from jentropy.errors import InputError
from jentropy.models import footprint, spreading, token_step
from jentropy.models.footprint import abstract_model, described
from jentropy.pallas_kernels.filling import put

from .compilers import needs, outputs
from .conftest import HERE

CONFIGS = HERE / "configs"  # of published models, without weights
SMALL = 1 << 12  # bytes of numbers that JAX keeps
LLAMA, QWEN = CONFIGS / "llama-3.1-8b", CONFIGS / "qwen3-8b"


def nbytes(tree) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("backend", ["reference", "tpu", "gpu"])
@pytest.mark.parametrize("path", [LLAMA, QWEN / "config.json"], ids=lambda path: path.stem)
def test_a_bf16_model_holds_three_quarters_of_its_bytes(path, backend):
    config, formats = described(path)
    dense = nbytes(nnx.state(abstract_model(config, None, formats)))
    assert 16.0e9 < dense < 16.4e9
    assert 0.75 * dense < nbytes(nnx.state(abstract_model(config, backend, formats))) < 0.76 * dense


def test_formats_are_those_of_the_weights(fixtures, packed):
    for path in (packed["gptq_v1"], packed["llama_bf16"]):
        config, formats = described(path)
        model, real = abstract_model(config, "reference", formats), jentropy.models.load(path)
        assert nbytes(nnx.state(model)) == pytest.approx(nbytes(nnx.state(real)), rel=0.03)


def test_loading_holds_little_more_than_the_model(packed, monkeypatch):
    """Buffers of the device, whenever a matrix goes into its stack: it may be there twice."""
    held, stacks = [], {}

    def now():  # stacks are arrays of the host until they are full
        filled = [a for a in jax.tree.leaves(list(stacks.values())) if isinstance(a, np.ndarray)]
        return nbytes(jax.live_arrays()) + nbytes(filled)

    def watched(before, *arguments):
        held.append(now())
        stack = put(before, *arguments)
        stacks.pop(id(before), None)
        stacks[id(stack)] = stack
        held.append(now())
        return stack

    monkeypatch.setattr(spreading, "put", watched)
    for name in ("llama_bf16", "gptq_v1"):
        source = jentropy.open_checkpoint(packed[name])
        largest = 2 * max(math.prod(source.tensor(n).shape) for n in source.names())  # of BF16
        gc.collect()
        before = nbytes(jax.live_arrays())
        held.clear()
        stacks.clear()
        model = jentropy.models.load(packed[name])
        resident = nbytes(
            [v.get_value() for _, v in nnx.to_flat_state(nnx.state(model, nnx.Param))]
        )
        assert len(held) > 20
        assert max(held) - before <= resident + 2 * largest + SMALL
        assert nbytes(jax.live_arrays()) - before <= resident + SMALL


def test_loading_holds_few_tensors_on_the_host(packed, monkeypatch):
    """What was read is let go when it is in the model."""
    read, alive = CompressedCheckpoint.read_all, []
    held = []

    def watched(self, parts=None):
        for tensor, codes in read(self, parts):
            alive.extend(map(weakref.ref, codes.values()))
            held.append(nbytes([a for a in (one() for one in alive) if a is not None]))
            yield tensor, codes

    monkeypatch.setattr(CompressedCheckpoint, "read_all", watched)
    monkeypatch.setattr(codecs, "batch_symbols", lambda: 1)  # of which there is one at a time
    source = jentropy.open_checkpoint(packed["llama_bf16"])
    sizes = [2 * math.prod(source.tensor(name).shape) for name in source.names()]
    jentropy.models.load(packed["llama_bf16"])
    assert len(held) == len(sizes)
    assert max(held) <= 2 * max(sizes) + SMALL < sum(sizes) / 2


def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(InputError, match="no checkpoint"):
        described(tmp_path)
    assert footprint.main([str(tmp_path), "--tpu", "v5e"]) == footprint.BAD_INPUT


def test_what_a_step_multiplies_by():
    """All matrices but the embedding; experts as often as tokens are expected to choose them."""
    for folder, batch, billions in (
        (LLAMA, 1, 7.504),
        (CONFIGS / "gpt-oss-20b", 1, 3.6),
        (CONFIGS / "gpt-oss-20b", 16, 18.1),
        (CONFIGS / "deepseek-v3", 1, 36.6),
    ):
        config, formats = described(folder)
        used = list(token_step.products(config, formats, batch))
        read = sum(one.count * one.k * one.n for one in used)
        assert read == pytest.approx(billions * 1e9, rel=0.02), (folder.name, batch)
        assert {one.rows for one in used} <= set(range(1, batch + 1))
    experts = list(token_step.chosen(config, {}, None, "FP8_BLOCK"))
    assert experts
    assert all("experts" in path for path in experts)


@needs("v5e")
def test_a_step_is_bounded_by_what_it_reads(tmp_path):
    config = json.loads((LLAMA / "config.json").read_text()) | {"vocab_size": 4096}
    (tmp_path / "config.json").write_text(json.dumps(config))
    command = ("-m", "jentropy.models.token_step", str(tmp_path), "--tpu", "v6e", "--json", "-")
    (found,) = outputs(command)
    one, many = found["compressed"]
    dense = found["dense"][0]
    assert 0.74 < one["weight_bytes"] / dense["weight_bytes"] < 0.77
    assert one["bundles"] < one["with_waits"] <= one["bound"]
    assert one["memory"] <= one["bound"]
    assert 1.2 < one["tokens_per_second"] / dense["tokens_per_second"] < 1.35
    assert many["tokens_per_second"] == pytest.approx(16 * one["tokens_per_second"], rel=0.05)


@needs("v5e")
def test_llama_fits_a_v5e():
    """An 8B model bit for bit in 16 GB, which dense weights alone exceed."""
    command = ("-m", "jentropy.models.footprint", str(LLAMA), "--tpu", "v5e", "--json", "-")
    # Few tokens at a time, which are compiled faster.
    sizes = ("--batch", "8", "--context", "1024", "--chunk", "16")
    (found,) = outputs((*command, *sizes, "--dense"))
    ours, dense = found["compressed"], found["dense"]
    assert ours["fits"]
    assert ours["weight_bytes"] < 12.1e9
    assert ours["cache_bytes"] == 8 * 1024 * 2 * 32 * 8 * 128 * 2
    for program in ours["programs"].values():
        assert ours["weight_bytes"] + ours["cache_bytes"] < program["peak_bytes"] < 15e9
        assert program["temporary_bytes"] < 1.3e9
    assert not dense["fits"]
    for program in dense["programs"].values():
        assert "exceeds available HBM" in program["refused"]
    assert json.loads((LLAMA / "config.json").read_text())["num_hidden_layers"] == 32
