"""Hopper layouts and kernels in interpret mode: bits of the reference; races are looked for.

Memory is NaN until it is written. Registers are none of the interpreter's business: that fragments
lie as WGMMA wants them is held to Mosaic's own description of its layout.
"""

from __future__ import annotations

import ast
import json
import logging
import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import jentropy
from jentropy import jax_internals
from jentropy import pallas_kernels as kernels
from jentropy.bench import matmul as bench_matmul
from jentropy.bench import tuning as bench_tuning
from jentropy.cli import console
from jentropy.errors import CheckError, CorruptError, UnsupportedError
from jentropy.pallas_kernels import fused, reference, targets
from jentropy.pallas_kernels.gpu_window12 import layout as gpu_window12
from jentropy.pallas_kernels.gpu_window12 import plan as gpu_window12_plan
from jentropy.pallas_kernels.hopper import fragments, groups, registers, tuning
from jentropy.pallas_kernels.hopper.plan import MOST_ROWS, TILE_N, Config, configs, make_plan
from jentropy.pallas_kernels.targets import GPUS, KINDS, backend_of

# The interpreter multiplies with NumPy, which warns of NaN and Inf.
with_nan = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
NAME = "gpu_window12"
TRAITS = gpu_window12_plan.traits(list_words=16)
N, K = 200, 300  # of weights as they are stored: ragged in every tile


@pytest.fixture
def interpret():
    """Interpret mode with everything it can look for."""
    return jax_internals.gpu_interpreter(detect_races=True, uninitialized_memory="nan")


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """A GPU of two multiprocessors: interpreted blocks of threads are slow."""
    small = replace(GPUS["h200"], multiprocessors=2)
    monkeypatch.setattr(targets, "current_gpu", lambda: small)
    with jax_internals.gpu_interpreter_compiles_once():
        yield small


def weights(shape=(N, K), seed=0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(shape).astype(np.float32) * 0.02
    values[..., 3, :] *= 1e-4  # a row of small ones
    values[..., 5, :] = 0
    return values.astype(ml_dtypes.bfloat16)


def with_codes(codes: np.ndarray, shape=(N, K)) -> jax.Array:
    """Weights, some of them these codes."""
    own = weights(shape).view(np.uint16).reshape(-1)
    own[np.random.default_rng(1).permutation(own.size)[: codes.size]] = codes
    return jax.lax.bitcast_convert_type(jnp.asarray(own.reshape(shape)), jnp.bfloat16)


def resident(weight, **options) -> kernels.ResidentTensor:
    """On backend gpu; the kernels' layout, not another's."""
    w = kernels.to_resident(weight, "gpu", **options)
    assert isinstance(w, kernels.ResidentTensor)
    assert w.layout == NAME
    return w


def bits(array) -> np.ndarray:
    return np.asarray(array).view({2: np.uint16, 4: np.uint32}[array.dtype.itemsize])


def close(y, x, w, out_dtype=jnp.float32):
    """Within the error of a dense product from bfloat16, accumulated in float32."""
    x, w = (np.asarray(a, np.float64) for a in (x, w))
    expected, scale = x @ w, np.abs(x) @ np.abs(w)
    tolerance = 2.0**-20 * scale + 2.0**-8 * (out_dtype == jnp.bfloat16) * np.abs(expected)
    assert y.dtype == out_dtype
    assert (np.abs(np.asarray(y, np.float64) - expected) <= tolerance + 1e-30).all()


@pytest.mark.parametrize("fragment_count", [1, 4])
def test_fragments_lie_as_mosaic_says(fragment_count):
    """`restore` against the tiling, warps and lanes that Mosaic gives its own WGMMA layout."""
    columns = fragment_count * fragments.COLUMNS
    layout = jax_internals.wgmma_layout()
    index = np.arange(fragments.ROWS * columns).reshape(fragments.ROWS, columns)
    for tile in layout.tiling.tiles:  # the last axes are split into tiles and what is in one
        lead, own = index.shape[: -len(tile)], index.shape[-len(tile) :]
        split = [s for size, t in zip(own, tile, strict=True) for s in (size // t, t)]
        rank = len(tile)
        order = [*range(0, 2 * rank, 2), *range(1, 2 * rank, 2)]
        index = index.reshape(*lead, *split)
        index = index.transpose(*range(len(lead)), *(len(lead) + i for i in order))
    (warp,), lanes, vector = layout.warp_dims, layout.lane_dims, layout.vector_dim
    held = [index.ndim + d for d in (warp, *lanes, vector)]
    registers = [d for d in range(index.ndim) if d not in held]
    by_thread = index.transpose(*held[:-1], *registers, held[-1])
    by_thread = by_thread.reshape(fragments.THREADS, -1, 2)  # thread, register, half
    ours = by_thread.reshape(fragments.THREADS, fragment_count, 4, 2).swapaxes(0, 1)
    ours = ours.reshape(1, 1, fragment_count, fragments.PLACES, 2)
    np.testing.assert_array_equal(
        fragments.restore(jnp.asarray(ours))[:, :], np.arange(64 * columns).reshape(64, columns)
    )


def test_fragments_come_back():
    matrix = jnp.arange(128 * 192).reshape(128, 192)
    arranged = fragments.arrange(matrix)
    np.testing.assert_array_equal(fragments.restore(arranged), matrix)
    for row, column in ((0, 0), (77, 130), (63, 63), (9, 15), (127, 191)):
        place = fragments.place_of(row % 64, column % 16)
        at = row // 64, column // 64, column % 64 // 16, place, column % 2
        assert arranged[at] == matrix[row, column]
    place = np.arange(fragments.PLACES)
    again = fragments.place_of(fragments.row_of(place), fragments.column_of(place))
    np.testing.assert_array_equal(again, place)


@pytest.mark.parametrize("reduce_axis", [-1, -2])
def test_every_code_survives(reduce_axis):
    codes = np.arange(1 << 16, dtype=np.uint16)
    dense = with_codes(codes, (1000, 1000))
    w = resident(dense, reduce_axis=reduce_axis)
    np.testing.assert_array_equal(bits(reference.decode(w, jnp.bfloat16)), bits(dense))
    ids = jnp.array([[999, 0], [3, 5000]])
    taken = kernels.take_rows(w, ids)
    np.testing.assert_array_equal(bits(taken), bits(dense[jnp.clip(ids, 0, 999)]))


def test_too_many_escapes_rest_elsewhere():
    codes = np.arange(1 << 16, dtype=np.uint16).reshape(256, 256)
    dense = jax.lax.bitcast_convert_type(jnp.asarray(codes), jnp.bfloat16)
    w = kernels.to_resident(dense, "gpu")
    np.testing.assert_array_equal(bits(kernels.decode(w)), codes)
    assert not isinstance(w, kernels.ResidentTensor) or w.backend == "reference"


def test_bits_of_gaussian_weights():
    w = resident(jnp.asarray(weights((1024, 1024))))
    assert w.bits_per_weight < 12.1


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32], ids=["bf16", "f32"])
def test_decode_gives_every_codes_number(dtype, interpret):
    dense = with_codes(np.arange(0, 1 << 16, 256, dtype=np.uint16) + 129)
    expected = dense if dtype == jnp.bfloat16 else dense.astype(dtype)
    w = resident(dense)
    np.testing.assert_array_equal(
        bits(kernels.decode(w, dtype, interpret=interpret)), bits(expected)
    )


def test_decode_of_every_bf16_code():
    dense = with_codes(np.arange(1 << 16, dtype=np.uint16), (512, 2048))
    decoded = kernels.decode(resident(dense), interpret=True)
    np.testing.assert_array_equal(bits(decoded), bits(dense))


@with_nan
def test_identity_gives_every_weight(interpret):
    codes = np.random.default_rng(2).integers(0, 1 << 16, 60).astype(np.uint16)
    dense = with_codes(codes, (130, 140))
    y = jentropy.matmul(
        jnp.eye(140, dtype=jnp.bfloat16),
        resident(dense),
        transpose_w=True,
        out_dtype=jnp.float32,
        interpret=interpret,
    )
    y, expected = np.asarray(y), np.asarray(dense, np.float32).T
    bad = ~np.isfinite(expected).all(0)  # columns with NaN or Inf
    np.testing.assert_array_equal(np.isfinite(y).all(0), ~bad)
    sound = ~bad & (np.abs(expected) >= 2.0**-126)
    np.testing.assert_array_equal(y[sound], expected[sound])


@with_nan
def test_nan_and_inf_are_those_of_the_dense_product(interpret):
    dense = np.array(weights())
    dense.view(np.uint16)[[7, 70, 150], [9, 99, 299]] = 0x7F80, 0xFF80, 0x7FC1
    x = jnp.asarray(np.random.default_rng(3).standard_normal((4, K)), jnp.bfloat16)
    y = jentropy.matmul(x, resident(jnp.asarray(dense)), transpose_w=True, interpret=interpret)
    expected = jnp.dot(x, jnp.asarray(dense).T)
    np.testing.assert_array_equal(np.isnan(y), np.isnan(expected))
    np.testing.assert_array_equal(np.isinf(y), np.isinf(expected))


@pytest.mark.parametrize(
    ("config", "m"),
    [
        (Config(tile_k=128, stages=2), 5),
        (Config(tile_k=128, stages=3, rounds=1), 1),
        (Config(tile_k=256, stages=2), 17),
        (Config(tile_k=128, stages=2, rounds=2), 8),
        (Config(tile_k=256, stages=2, height=2), 5),
    ],
)
def test_products_of_every_plan(config, m, interpret, few, monkeypatch):
    """Three tiles on two multiprocessors: cut, some cut, whole, of twice the height; ragged."""
    n = 700 if config.height == 2 else 300
    dense = jnp.asarray(weights((n, 500)))
    w = resident(dense)
    made = make_plan(m=m, k=500, n=n, traits=TRAITS, target=few, config=config)
    assert made.parts == (1 if config.rounds == 2 else 2)
    monkeypatch.setattr(gpu_window12_plan, "plan", lambda *_: made)
    x = jnp.asarray(np.random.default_rng(1).standard_normal((m, 500)), jnp.bfloat16)
    y = jentropy.matmul(x, w, transpose_w=True, out_dtype=jnp.float32, interpret=interpret)
    close(y, x, dense.T)


def test_fewer_steps_than_blocks(monkeypatch):
    """Of four tiles three are dealt in a round; two steps are left for three blocks of threads."""
    dense = jnp.asarray(weights((512, 256)))
    three = replace(GPUS["h200"], multiprocessors=3)
    config = Config(tile_k=128, stages=2, rounds=1)
    made = make_plan(m=8, k=256, n=512, traits=TRAITS, target=three, config=config)
    assert (made.line, made.blocks, made.parts) == (2, 3, 2)
    monkeypatch.setattr(gpu_window12_plan, "plan", lambda *_: made)
    x = jnp.asarray(np.random.default_rng(1).standard_normal((8, 256)), jnp.bfloat16)
    y = jentropy.matmul(x, resident(dense), True, out_dtype=jnp.float32, interpret=True)
    close(y, x, dense.T)


@pytest.mark.parametrize(
    ("sizes", "rows", "precision"),
    [((3, 0, 17, 1), 24, None), ((0, 5), 5, "highest")],
    ids=["some", "full precision"],
)
def test_groups_of_rows(sizes, rows, precision):
    """A layer's matrices where they lie: several windows of a group, none of others.

    Rows of none give 0, whatever they hold.
    """
    dense = weights((2, len(sizes), 130, 140))
    x = np.random.default_rng(1).standard_normal((rows, 140)).astype(np.float32)
    x = x if precision else x.astype(ml_dtypes.bfloat16)
    x[sum(sizes) :] = np.nan
    y = jentropy.grouped_matmul(
        jnp.asarray(x),
        resident(jnp.asarray(dense)).layer(1),
        jnp.asarray(sizes, jnp.int32),
        transpose_w=True,
        out_dtype=jnp.float32,
        interpret=True,
        precision=precision,
    )
    end = 0
    for size, matrix in zip(sizes, dense[1], strict=True):
        close(y[end : end + size], x[end : end + size], matrix.T)
        end += size
    assert y.shape == (rows, 130)
    assert not np.asarray(y[end:]).any()


@pytest.mark.parametrize(
    ("sizes", "rows", "window"),
    [
        ((0, 8, 1, 0, 17, 3), 32, 16),
        ((0, 0), 8, 8),
        ((1,) * 200 + (0,) * 55 + (40,), 256, 16),
        ((5, 3, 8, 1), 24, 8),
    ],
    ids=["ragged", "no rows", "many", "few windows"],
)
def test_visits_have_every_row_once(sizes, rows, window):
    """In windows that lie within x, of the matrices of their groups."""
    places = np.arange(len(sizes))[::-1] + 7
    of = jax.jit(groups.visits_of, static_argnums=(2, 3))
    count, table = of(jnp.asarray(sizes), jnp.asarray(places), rows, window)
    place, start, low, high = np.asarray(table)[:, : int(count[0])]
    assert (start % 8 == 0).all()
    assert (start <= low).all()
    assert (low < high).all()
    assert (high <= start + window).all()
    assert (start + window <= rows).all()
    held = [(p, row) for p, *of in zip(place, low, high, strict=True) for row in range(*of)]
    assert held == list(zip(np.repeat(places, sizes), range(sum(sizes)), strict=True))


@pytest.mark.parametrize(
    ("tiles", "steps", "blocks"), [(0, 5, 4), (3, 7, 132), (11, 3, 4), (8, 2, 4)]
)
def test_tiles_of_visits_are_dealt_once(tiles, steps, blocks):
    """What is left over after whole rounds in pieces of a line, each in the hands of one block."""
    deal = groups.Visits(steps=steps, blocks=blocks, tiles=jnp.int32(tiles), whole=False)
    block = jnp.arange(blocks + 1, dtype=jnp.int32)
    rounds, first = (np.asarray(jax.vmap(of)(block)) for of in (deal.rounds_of, deal.first_of))
    assert rounds[:blocks].sum() * steps + int(deal.line) == tiles * steps
    assert first[0] == 0
    assert first[-1] == deal.line
    step = np.arange(int(deal.line), dtype=np.int32)
    owner = np.asarray(deal.block_of(jnp.asarray(step)))
    assert (first[owner] <= step).all()
    assert (step < first[owner + 1]).all()


def test_64_bits(request):
    """JAX's own integers are wider then, in the interpreter's threads too."""
    dense = jnp.asarray(weights((130, 140)))
    x = jnp.asarray(np.random.default_rng(1).standard_normal((3, 140)), jnp.bfloat16)
    w = resident(dense)
    request.addfinalizer(lambda: jax.config.update("jax_enable_x64", False))
    jax.config.update("jax_enable_x64", True)
    y = jentropy.matmul(x, w, transpose_w=True, out_dtype=jnp.float32, interpret=True)
    decoded = kernels.decode(w, interpret=True)
    close(y, x, dense.T)
    np.testing.assert_array_equal(bits(decoded), bits(dense))


@pytest.mark.parametrize("reduce_axis", [-1, -2])
@pytest.mark.parametrize("transpose_w", [False, True])
def test_both_products_of_both_orders(reduce_axis, transpose_w):
    dense = jnp.asarray(weights((140, 260)))
    w = resident(dense, reduce_axis=reduce_axis)
    inner = 260 if transpose_w else 140
    x = jnp.asarray(np.random.default_rng(1).standard_normal((2, 3, inner)), jnp.float32)
    y = jentropy.matmul(x, w, transpose_w=transpose_w, interpret=True)
    assert y.shape == (2, 3, 400 - inner)
    flat, rounded = y.reshape(6, -1), x.reshape(6, inner).astype(jnp.bfloat16)
    close(flat, rounded, dense.T if transpose_w else dense)


@pytest.mark.parametrize("m", [300, 330], ids=["passes", "dense"])
def test_many_rows(m, few, monkeypatch):
    few = replace(few, fused_rows=320)
    monkeypatch.setattr(targets, "current_gpu", lambda: few)
    dense = jnp.asarray(weights((128, 128)))
    x = jnp.asarray(np.random.default_rng(1).standard_normal((m, 128)), jnp.bfloat16)
    w = resident(dense)
    made = fused.kernels_of(w).plan(w, m)
    assert (made.fused, made.passes) == ((True, 2) if m == 300 else (False, 2))
    y = jentropy.matmul(x, w, transpose_w=True, out_dtype=jnp.float32, interpret=True)
    close(y, x, dense.T)


def test_full_precision_and_output_dtype():
    dense = jnp.asarray(weights((130, 260)))
    x = jnp.asarray(np.random.default_rng(1).standard_normal((3, 260)), jnp.float32)
    y = jentropy.matmul(x, resident(dense), transpose_w=True, precision="highest", interpret=True)
    close(y, x, dense.T)
    y = jentropy.matmul(x.astype(jnp.bfloat16), resident(dense), transpose_w=True, interpret=True)
    close(y, x.astype(jnp.bfloat16), dense.T, jnp.bfloat16)


def test_gradient_vmap_and_scan():
    dense = jnp.asarray(weights((2, 128, 128)))
    w = resident(dense)
    assert w.shape == (2, 128, 128)
    x = jnp.asarray(np.random.default_rng(1).standard_normal((3, 128)), jnp.bfloat16)

    def through(x):
        def layer(x, one):
            return jentropy.matmul(x, one, transpose_w=True, interpret=True), None

        return jax.lax.scan(lambda x, i: layer(x, w[i]), x, jnp.arange(2))[0]

    def dense_through(x):
        for one in dense:
            x = jnp.dot(x, one.T, preferred_element_type=jnp.float32).astype(x.dtype)
        return x

    np.testing.assert_allclose(
        np.asarray(through(x), np.float32), np.asarray(dense_through(x), np.float32), atol=2e-3
    )
    first = jax.tree.map(lambda a: a[0], w)
    second = kernels.decode(w[1], interpret=True)
    np.testing.assert_array_equal(bits(second), bits(dense[1]))
    gradient = jax.grad(
        lambda x: (
            jentropy.matmul(x, first, transpose_w=True, interpret=True).astype(jnp.float32).sum()
        )
    )(x)
    expected = np.broadcast_to(np.asarray(dense[0], np.float32).sum(0), (3, 128))
    np.testing.assert_allclose(np.asarray(gradient, np.float32), expected, rtol=1e-2, atol=1e-2)
    each = jax.vmap(lambda x: jentropy.matmul(x[None], first, transpose_w=True, interpret=True)[0])(
        x
    )
    together = jentropy.matmul(x, first, transpose_w=True, interpret=True)
    np.testing.assert_array_equal(bits(each), bits(together))


LAYERS = [
    *((4096, 4096), (6144, 4096), (28672, 4096), (4096, 14336)),
    *((5120, 2880), (151936, 5120), (51200, 5120)),
]


@pytest.mark.parametrize(("n", "k"), LAYERS)
@pytest.mark.parametrize("m", [1, 16, 64, 200, 256])
def test_plans_deal_every_step_once(m, n, k):
    target = GPUS["h200"]
    for config in configs(m=m, k=plan_k(k), n=n // TILE_N * TILE_N, traits=TRAITS, target=target):
        made = make_plan(m=m, k=k, n=n, traits=TRAITS, target=target, config=config)
        assert made.shared_bytes <= target.shared_bytes
        blocks = np.arange(made.blocks)
        lengths = made.rounds_of(blocks) * made.steps
        lengths += made.first_of(blocks + 1) - made.first_of(blocks)
        assert lengths.sum() == made.tiles * made.steps
        assert lengths.min() > 0
        owner = made.block_of(np.arange(made.line))
        assert (owner[1:] >= owner[:-1]).all()
        assert (made.first_of(owner) <= np.arange(made.line)).all()
        assert (np.arange(made.line) < made.first_of(owner + 1)).all()
        for tile in range(made.dealt, made.tiles):  # all parts that are added have an owner
            first = (tile - made.dealt) * made.steps
            owners = np.unique(owner[first : first + made.steps])
            assert owners.size == made.parts_of(tile)
            assert owners[-1] - owners[0] == owners.size - 1
        if config.rounds == 0:
            assert lengths.max() - lengths.min() <= 1


def plan_k(k: int) -> int:
    return -(-k // TILE_N) * TILE_N


def test_plan_passes_and_crossover():
    target = replace(GPUS["h200"], fused_rows=512)
    made = make_plan(m=MOST_ROWS + 1, k=4096, n=4096, traits=TRAITS, target=target)
    assert (made.fused, made.passes, made.m) == (True, 2, 136)
    assert not make_plan(
        m=target.fused_rows + 1, k=4096, n=4096, traits=TRAITS, target=target
    ).fused
    long = make_plan(
        m=256,
        k=4096,
        n=4096,
        traits=gpu_window12_plan.traits(gpu_window12.MOST_LISTED * 64),
        target=target,
    )
    assert not long.fused, "lists that shared memory has no room for"


def test_tuned_configurations(tmp_path, monkeypatch):
    monkeypatch.setattr(tuning, "path_of", lambda kind: tmp_path / f"{kind}.json")
    product = {"m": 16, "k": 4096, "n": 4096, "tile_k": 128, "stages": 3, "rounds": 1, "height": 2}
    layouts = {NAME: {"fused_rows": 96, "products": [product]}}
    tuning.save(tmp_path / "a.json", {"device_kind": "a", "layouts": layouts})
    tuned = tuning.load("a", NAME)
    assert tuned.config(9, 4000, 4090) == Config(tile_k=128, stages=3, rounds=1, height=2)
    assert tuned.config(17, 4096, 4096) is None
    assert tuned.target(GPUS["h200"]).fused_rows == 96
    assert tuning.load("absent", NAME) == tuning.Tuned()
    for text in ("{", "[]", '{"layouts": {NAME: {"products": [{"m": 1}]}}}'):
        (tmp_path / "bad.json").write_text(text)
        tuning.load.cache_clear()
        with pytest.raises(CorruptError, match="bad"):
            tuning.load("bad", NAME)
    product["tile_k"] = 100
    tuning.save(tmp_path / "a.json", {"device_kind": "a", "layouts": layouts})
    with pytest.raises(CorruptError, match="tile_k 100"):
        tuning.load("a", NAME)


BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
SCRIPT = runpy.run_path(str(BENCHMARKS / "hopper.py"))  # that runs on a GPU


def test_every_part_of_the_run_on_a_gpu_is_there():
    code = ast.parse((BENCHMARKS / "hopper_parts" / "__main__.py").read_text())
    (parts,) = (
        one.value
        for one in code.body
        if isinstance(one, ast.AnnAssign) and ast.unparse(one.target) == "PARTS"
    )
    assert set(SCRIPT["PARTS"]) == {ast.literal_eval(key) for key in parts.keys}
    assert set(SCRIPT["TIMED"]) < set(SCRIPT["PARTS"])


def test_the_run_on_a_gpu_goes_on_after_a_case_that_breaks_it(tmp_path, capsys):
    """In a process after it; a part that takes too long ends."""
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "hopper_parts.py").write_text(
        "import os, pathlib, sys, time\n"
        "for case in range(int(sys.argv[3]), 3):\n"
        "    pathlib.Path(os.environ['HOPPER_BEGUN']).write_text(str(case + 1))\n"
        "    print('case', case, flush=True)\n"
        "    os.abort() if case == 1 else time.sleep(60 * (sys.argv[2] == 'right'))\n"
    )
    (tmp_path / "scratch").mkdir()
    run = SCRIPT["Run"](tmp_path, 60, True, tmp_path / "scratch")
    run.environment["PYTHONPATH"] = str(tmp_path / "parts")
    run.part("ceilings", 50)
    run.part("right", 1)
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    ends = [("ceilings", "-6", 2), ("ceilings", "0", 3), ("right", "out of time", 1)]
    assert [(line["part"], line["code"], line["cases"]) for line in lines] == ends


def test_what_was_aimed_at_stands_beside_what_was_reached():
    line = {"part": "times", "what": "-", "format": "BF16", "m": 16, "layer": "a", "speedup": 1.0}
    lines = [line, line | {"layer": "b", "speedup": 4.0}, line | {"m": 4096, "speedup": 0.5}]
    (first, of), (second, many) = SCRIPT["reached"](lines)
    assert (first, of["layers"], of["mean"], of["aim"]) == ("BF16 M=16", 2, 2.0, 1.2)
    assert (of["least"], of["least_aim"], of["least_layer"]) == (1.0, 0.98, "a")
    assert (second, many["mean"], many["aim"], many["least_aim"]) == ("BF16 M=4096", 0.5, 0.9, None)


def test_tuning_keeps_no_wrong_product(few, monkeypatch):
    dense = jnp.asarray(weights((256, 256)))
    monkeypatch.setattr(targets, "current_gpu", lambda: few)
    right = jnp.dot(bench_matmul.normal(0, (8, 256)), dense.T)
    monkeypatch.setattr(bench_tuning, "program", lambda *_: lambda: [right])
    times = bench_tuning.times_of(8, dense, [resident(dense)])
    assert set(times) == set(configs(m=8, k=256, n=256, traits=TRAITS, target=few))
    monkeypatch.setattr(bench_tuning, "program", lambda *_: lambda: [right.at[3, 5].add(1)])
    with pytest.raises(CheckError, match="M=8 is off by"):
        bench_tuning.times_of(8, dense, [resident(dense)])


def unreadable(folder: Path) -> list[str]:
    """Files that are of no known device, or give nothing."""
    kinds = {tuning.path_of(kind).name: kind for kind in KINDS}
    names = [path.name for path in folder.glob("*.json")]
    return [n for n in names if n not in kinds or tuning.load(kinds[n], NAME) == tuning.Tuned()]


def test_tuned_files_can_be_read(tmp_path, monkeypatch):
    assert unreadable(tuning.path_of("any").parent) == []
    monkeypatch.setattr(tuning, "path_of", lambda kind: tmp_path / f"{kind.replace(' ', '_')}.json")
    tuning.save(tuning.path_of("NVIDIA H200"), {"layouts": {NAME: {"fused_rows": 96}}})
    assert unreadable(tmp_path) == []
    tuning.save(tuning.path_of("NVIDIA H100 PCIe"), {"layouts": {"gpu_window13": {}}})
    tuning.save(tuning.path_of("NVIDIA H300"), {"layouts": {NAME: {"fused_rows": 96}}})
    assert sorted(unreadable(tmp_path)) == ["NVIDIA_H100_PCIe.json", "NVIDIA_H300.json"]


class Device:
    """What `backend_of` asks of a device."""

    def __init__(self, platform, kind, capability=None):
        self.platform, self.device_kind = platform, kind
        if capability:
            self.compute_capability = capability


@pytest.mark.usefixtures("unchecked")
def test_other_gpus_take_the_reference_and_say_so(caplog, monkeypatch):
    monkeypatch.setattr(logging.root.manager, "disable", 0)  # the command silences all loggers
    assert backend_of(Device("gpu", "NVIDIA H200", "9.0")) == "gpu"
    assert backend_of(Device("gpu", "NVIDIA A100-SXM4-40GB", "8.0")) == "reference"
    assert "A100" in caplog.text
    assert "8.0" in caplog.text
    assert backend_of(Device("rocm", "AMD Instinct MI300X")) == "reference"
    assert "MI300X" in caplog.text
    caplog.clear()
    assert backend_of(Device("cpu", "cpu")) == "reference"
    assert not caplog.text


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("device", "said"), [(Device("gpu", "NVIDIA L4", "8.9"), "NVIDIA L4"), (Device("cpu", "c"), "")]
)
def test_the_command_says_why_a_gpu_takes_the_reference(device, said, capsys, monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda: [device])
    console.print_device_note()
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == bool(said)


def test_interpreter_needs_threads(monkeypatch):
    monkeypatch.setenv("NPROC", "2")
    with pytest.raises(UnsupportedError, match="NPROC=4"):
        registers.interpret_params(True)


def test_the_script_for_a_gpu_runs(tmp_path):
    """On a CPU, a part that takes seconds there."""
    command = [sys.executable, BENCHMARKS / "hopper.py", tmp_path, "--dry", "--parts", "times:200"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    found = {line["what"]: line for line in lines if line["what"] != "ended"}
    assert found["BF16 M=16"]["layers"] == 1
    assert found["wrong or failed"]["count"] == 0
    assert [line["code"] for line in lines if line["what"] == "ended"] == ["0"]
