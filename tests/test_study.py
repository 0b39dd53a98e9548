"""What a report says beside entropies: roles, magnitudes, contexts, savings, comparisons."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import jax
import ml_dtypes
import numpy as np
import pytest

import jentropy
from jentropy import entropy, formats
from jentropy.entropy import contexts, metering
from jentropy.entropy.magnitude import POINTS, magnitudes_of

RNG = np.random.default_rng(0)


def bf16(values: np.ndarray) -> np.ndarray:
    return values.astype(ml_dtypes.bfloat16)


def gains(codes: np.ndarray, number_format: formats.Format, sibling: np.ndarray | None = None):
    counts = entropy.measure(codes, number_format.element)

    def symbols(codes):
        sampler = contexts.Sampler(codes.shape)
        sampler.add(codes)
        return contexts.symbols_of(sampler.rows(), counts)

    return contexts.measure_contexts(symbols(codes), None if sibling is None else symbols(sibling))


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("model.layers.3.mlp.experts.17.down_proj.weight", ("expert", 3, 17)),
        ("model.layers.3.mlp.shared_experts.gate_proj.weight", ("gate", 3, None)),
        ("model.layers.3.mlp.gate.weight", ("router", 3, None)),
        ("model.layers.1.ffn.gate.weight", ("router", 1, None)),
        ("model.layers.0.block_sparse_moe.experts.2.w1.weight", ("expert", 0, 2)),
        ("model.layers.0.self_attn.kv_a_proj_with_mqa.weight", ("kv", 0, None)),
        ("model.layers.0.self_attn.q_norm.weight", ("norm", 0, None)),
        ("model.layers.0.self_attn.q_proj.bias", ("other", 0, None)),
        ("layers.0.attention.wo.weight", ("o", 0, None)),
        ("layers.0.feed_forward.w2.weight", ("down", 0, None)),
        ("blk.1.ffn_gate.weight", ("gate", 1, None)),
        ("blk.1.ffn_gate_inp.weight", ("router", 1, None)),
        ("blk.0.attn_output.weight", ("o", 0, None)),
        ("output.weight", ("head", None, None)),
        ("transformer.h.7.attn.c_attn.weight", ("qkv", 7, None)),
        ("transformer.h.7.mlp.c_proj.weight", ("down", 7, None)),
        ("params/decoder/layers/mlp/wi_0/kernel", ("gate", None, None)),
        ("['params']['layers_2']['attn']['query']['kernel']", ("q", 2, None)),
        ("lm_head.weight", ("head", None, None)),
        ("token_embd.weight", ("embedding", None, None)),
        ("w", ("other", None, None)),
    ],
)
def test_roles_of_names(name, role):
    found = entropy.role_of(name)
    assert (found.name, found.layer, found.expert) == role


@pytest.mark.parametrize("shape", [(64, 96), (512, 512), (96, 4096), (4, 48, 256)])
def test_contexts_of_independent_weights_save_nothing(shape):
    codes, sibling = (formats.codes_of(bf16(RNG.standard_normal(shape) * 0.02)) for _ in range(2))
    found = gains(codes, formats.FORMATS["BF16"], sibling)
    assert list(found) == list(contexts.CONTEXTS)
    for name, gain in found.items():
        assert abs(gain.bits) < 5 * gain.error + 1e-5, name


def test_contexts_find_what_is_there():
    scale = np.exp(0.25 * RNG.standard_normal((512, 1)))
    values = RNG.standard_normal((512, 1024)) * scale * 0.02
    codes = formats.codes_of(bf16(values))
    rows = gains(codes, formats.FORMATS["BF16"])
    columns = gains(np.ascontiguousarray(codes.T), formats.FORMATS["BF16"])
    assert 0.05 < rows["row"].bits < 0.08  # log-normal scales of .25
    assert abs(rows["column"].bits) < 0.002
    assert columns["column"].bits == pytest.approx(rows["row"].bits, abs=0.002)
    assert rows["left"].bits == pytest.approx(columns["upper"].bits, abs=0.002)
    assert 0.003 < rows["left"].bits < 0.01
    assert "sibling" not in rows
    beside = formats.codes_of(bf16(values + RNG.standard_normal(values.shape) * 0.001))
    assert gains(codes, formats.FORMATS["BF16"], beside)["sibling"].bits > 1.5


def test_contexts_take_whole_codes_of_four_bits():
    codes = np.tile(np.arange(16, dtype=np.uint8), (256, 16))
    found = gains(codes, formats.MXFP4)
    assert found["left"].bits == pytest.approx(4, abs=0.01)
    assert found["upper"].bits == pytest.approx(4, abs=0.01)
    assert abs(found["row"].bits) < 0.01


@pytest.mark.parametrize("name", ["FP16", "FP32", "FP8_E4M3", "FP8_E5M2"])
def test_contexts_know_exponents_of_every_format(name):
    element = formats.ELEMENTS[name]
    values = (RNG.standard_normal((1, 512)) * 0.5).astype(element.dtype)
    codes = formats.codes_of(np.repeat(values, 64, axis=0))
    exponent = entropy.measure(codes, element).field_entropy_bits()["exponent"]
    upper = gains(codes, formats.FORMATS[name])["upper"].bits
    assert upper == pytest.approx(exponent, abs=0.02)  # every row is the one above


def test_samples_are_of_whole_rows_and_the_same_for_a_shape():
    shape = (4096, 3072)
    sampling = contexts.Sampling.of(shape)
    assert len(sampling.starts) * sampling.rows * shape[1] >= contexts.SAMPLE
    assert sampling == contexts.Sampling.of(shape)
    codes = np.arange(np.prod(shape), dtype=np.uint32)
    sampler = contexts.Sampler(shape)
    for run in np.array_split(codes, 7):  # as they come out of an archive
        sampler.add(run)
    rows = sampler.rows()
    expected = codes.reshape(shape)
    for band, start in zip(rows, sampling.starts, strict=True):
        np.testing.assert_array_equal(band, expected[start : start + sampling.rows])


@pytest.mark.parametrize("shape", [(), (7,), (1, 8192), (8192, 1), (8, 8)])
def test_what_has_no_neighbours_is_not_looked_at(shape):
    sampler = contexts.Sampler(shape)
    sampler.add(np.zeros(shape, np.uint16))
    assert sampler.rows() is None


def test_smooth_curves_do_not_show_the_grid_of_codes():
    values = (RNG.standard_normal((512, 1024)) * 0.02).astype(np.float32)
    curves = {}
    for name in ("BF16", "MXFP4"):
        number_format = formats.FORMATS[name]
        codes = formats.quantize(values, number_format)
        arrays = {key: np.asarray(one) for key, one in codes.items()}
        curves[name] = magnitudes_of([entropy.measure_weight(arrays, number_format)])
    for curve in curves.values():
        points, density = curve.density()
        assert np.trapezoid(density, points) == pytest.approx(1, abs=1e-3)
        rising = np.diff(density[density > 1e-3]) > 0
        assert (np.diff(rising.astype(int)) != 0).sum() == 1  # one hill
    assert curves["BF16"].mode() == pytest.approx(np.log2(0.02), abs=0.5)
    assert curves["BF16"].cumulative().shape == POINTS.shape


def test_a_normalised_curve_does_not_depend_on_the_scale():
    values = RNG.standard_normal((256, 1024)) * 0.02
    plain, scaled = (
        magnitudes_of(
            [
                entropy.measure_weight(
                    {"code": formats.codes_of(bf16(values * factor))}, formats.FORMATS["BF16"]
                )
            ]
        )
        for factor in (1, 3.7)
    )
    assert np.abs(plain.cumulative() - scaled.cumulative()).max() < 0.003


@pytest.fixture(scope="module")
def tree() -> dict[str, np.ndarray]:
    layers = {
        f"model.layers.{i}.{part}.weight": bf16(RNG.standard_normal((64, 128)) * 0.02)
        for i in range(3)
        for part in ("self_attn.q_proj", "mlp.up_proj")
    }
    return {**layers, "model.norm.weight": bf16(np.ones(64)), "ids": np.arange(9)}


@pytest.fixture(scope="module")
def report(tree) -> entropy.EntropyReport:
    return jentropy.analyze(tree)


@pytest.mark.parametrize("jobs", ["1", "3"])
def test_threads_find_the_same(tree, report, monkeypatch, jobs):
    monkeypatch.setenv("JENTROPY_JOBS", jobs)
    monkeypatch.setattr(metering, "SMALL", 0)
    assert jentropy.analyze(tree).to_json() == report.to_json()


def test_a_report_knows_roles_contexts_and_savings(report):
    row = report.formats["BF16"]
    assert {name: one.tensors for name, one in row.roles.items()} == {"norm": 1, "q": 3, "up": 3}
    assert row.weights == sum(one.weights for one in row.roles.values())
    assert report.formats["RAW"].magnitudes is None
    assert not report.formats["RAW"].roles
    assert set(row.contexts) == set(contexts.CONTEXTS)
    by_name = {t.name: t for t in report.tensors}
    assert by_name["ids"].role is None
    assert "sibling" not in by_name["model.layers.0.mlp.up_proj.weight"].contexts
    assert "sibling" in by_name["model.layers.1.mlp.up_proj.weight"].contexts
    assert not by_name["model.norm.weight"].contexts
    tensor = by_name["model.layers.1.mlp.up_proj.weight"]
    assert sum(tensor.fields.values()) == pytest.approx(tensor.entropy_bits)
    savings = report.savings
    assert savings.stored == 2 * report.weights
    assert savings.archive == pytest.approx(
        sum(t.weights * t.described_bits / 8 for t in report.tensors if t.format != "RAW")
    )
    assert savings.stored * 0.7 < savings.resident < savings.stored * 0.76
    assert savings.speed_bound == pytest.approx(savings.stored / savings.resident)


def test_a_report_without_contexts_has_none(report):
    other = jentropy.analyze({"w": bf16(RNG.standard_normal((64, 128)))}, contexts=False)
    assert not other.contexts
    assert "contexts" not in other.to_json()


def test_what_cannot_be_compressed_is_said_to_be_so():
    noise = RNG.integers(0, 1 << 16, (256, 256), np.uint16).view(np.float16)
    savings = jentropy.analyze({"w": noise}).savings
    assert savings.verdict.startswith("not worth it")
    assert savings.speed_bound == 1


def test_json_is_a_superset_of_the_contract(report):
    told = json.loads(json.dumps(report.to_json()))
    assert {"source", "weights", "formats", "tensors", "magnitude"} <= set(told)
    row = told["formats"]["BF16"]
    assert {"weights", "allocated_bits", "entropy_bits", "joint_entropy_bits", "fields"} <= set(row)
    magnitude = told["magnitude"]
    assert len(magnitude["log2_edges"]) == len(magnitude["counts"]) + 1
    assert {"mean_log2", "std_log2", "small_fraction"} <= set(magnitude)
    assert sum(magnitude["counts"]) + magnitude["small"] == report.weights
    gain = told["contexts"]["left"]
    assert gain["interval"][0] <= gain["bits"] <= gain["interval"][1]
    assert (told["contexts"]["sample"], told["contexts"]["seed"]) == (contexts.SAMPLE, 0)


def test_sources_are_compared(report):
    quantised = {
        "w": formats.QuantizedTensor(
            number_format=formats.MXFP4,
            codes=formats.quantize(
                (RNG.standard_normal((256, 512)) * 0.02).astype(np.float32), formats.MXFP4
            ),
        )
    }
    plain = {"w": bf16(RNG.standard_normal((256, 512)) * 0.3)}
    reports = [report, jentropy.analyze(plain), jentropy.analyze(quantised)]
    told = entropy.compare(reports)
    assert set(told.distances) == {(0, 1), (0, 2), (1, 2)}
    assert told.distances[0, 1] < 0.02 < 0.04 < told.distances[1, 2]
    band = told.fields["BF16"]["exponent"]
    assert band.sources == 2
    assert band.width == pytest.approx(band.most - band.least)
    assert "RAW" not in told.fields
    assert json.loads(json.dumps(told.to_json()))["sources"] == ["pytree"] * 3
    assert report.distance < 0.03  # of the curve that comes along: weights that were trained


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        ({"torch_dtype": "bfloat16"}, "native"),
        ({}, "unknown"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "PTQ"),
        ({"model_type": "deepseek_v3", "quantization_config": {"quant_method": "fp8"}}, "native"),
        ({"model_type": "qwen3", "quantization_config": {"quant_method": "fp8"}}, "PTQ"),
        ({"model_type": "gpt_oss", "quantization_config": {"quant_method": "mxfp4"}}, "QAT"),
        ({"quantization_config": {"quant_method": "torchao", "quant_type": {"qat": 1}}}, "QAT"),
        ({"quantization_config": {"quant_method": "something"}}, "unknown"),
    ],
)
def test_the_origin_of_a_precision_is_read_from_the_config(tmp_path, config, kind):
    from safetensors.numpy import save_file

    save_file({"w": np.ones((4, 4), np.float16)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    origin = jentropy.analyze(tmp_path).origin
    assert origin.kind == kind
    assert bool(origin.told) == (kind != "unknown" or "quantization_config" in config)


def on_devices() -> None:
    """Reports of arrays over a mesh are those of the same arrays in NumPy."""
    values = RNG.standard_normal((64, 1024)) * 0.02
    plain = {"layers.0.q_proj": bf16(values), "layers.1.q_proj": values.astype(np.float32)}
    mesh = jax.make_mesh((2, 2), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    for spec in (("a", "b"), (None, "b"), ("b", None), (("a", "b"), None)):
        place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))
        tree = {name: jax.device_put(array, place) for name, array in plain.items()}
        assert jentropy.analyze(tree).to_json() == jentropy.analyze(plain).to_json()


def in_processes(number: int, port: int) -> None:
    """The same, of arrays that no process has all of."""
    jax.distributed.initialize(f"localhost:{port}", 2, number)
    values = bf16(RNG.standard_normal((64, 1024)) * 0.02)
    mesh = jax.make_mesh((2,), ("a",), axis_types=(jax.sharding.AxisType.Auto,))
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("a"))
    array = jax.make_array_from_callback(values.shape, place, lambda index: values[index])
    told = jentropy.analyze({"w": array}, contexts=False).to_json()
    assert told == jentropy.analyze({"w": values}, contexts=False).to_json()


def start(call: str, **environment: str) -> subprocess.Popen:
    program = f"from tests import test_study; test_study.{call}"
    return subprocess.Popen([sys.executable, "-c", program], env={**os.environ, **environment})


def test_arrays_over_a_mesh_are_counted_where_they_lie():
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
    assert start("on_devices()", XLA_FLAGS=flags).wait() == 0


def test_processes_count_together():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    started = [start(f"in_processes({number}, {port})") for number in range(2)]
    assert [process.wait() for process in started] == [0, 0]
