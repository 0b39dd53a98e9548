"""The TPU kernels through libtpu: budgets of their schedules, and that plans compile.

Nothing is run. By default budgets are those of the variants whose ratios are promised, and other
plans are sampled by what they differ in from these, every variant on every TPU, other rows and
tiles on one of them; JENTROPY_AOT=all compiles every plan and variant.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jentropy.errors import InputError
from jentropy.pallas_kernels import ResidentTensor, decode, profile, to_resident
from jentropy.pallas_kernels.fused import as_read, kernels_of
from jentropy.pallas_kernels.profiling import (
    budgets,
    compiling,
    crossover,
    schedule,
    tpu,
    tpu_grouped,
)
from jentropy.pallas_kernels.targets import TPUS
from jentropy.pallas_kernels.tpu.crossover import FUSED_ROWS
from jentropy.pallas_kernels.tpu_nvfp4.plan import FEW
from jentropy.pallas_kernels.variants import VARIANTS, weight_of

from . import plans
from .compilers import EVERYTHING, needs, outputs

PROMISED = tuple(name for name, variant in VARIANTS.items() if variant.promised)
PARTS = 2  # that all plans of a TPU are compiled in
SAMPLED = ("gpt-oss-120b", "Llama-3-8B")
STACKED = (3, 2048, 2048)  # layers, K, N of a stack
STACKS = PROMISED if EVERYTHING else ("BF16", "FP8 128x128")  # one for each way of reading words
STACKS_OF = {  # those that are compiled for each TPU
    target: STACKS if EVERYTHING else (STACKS[place % len(STACKS)],)
    for place, target in enumerate(TPUS)
}
NAMES = profile.BUDGETED if EVERYTHING else PROMISED
# Of those, products of 16 rows and decodes.
HELD = {name + kind for name in PROMISED for kind in ("", budgets.DECODE)}
# Variants whose visits to experts are compiled, and of which layers.
OF_EXPERTS = dict.fromkeys(TPUS, profile.OF_EXPERTS) if EVERYTHING else {"v5e": ["FP8 128x128"]}
TOKENS_OF_LAYERS = budgets.TOKENS_OF_LAYERS if EVERYTHING else {"gpt-oss-120b": (budgets.TOKENS,)}
# Products of 16 rows that do not wait for memory, the waits for the MXU counted.
BUSY = {
    "v5e": {"INT4 g32"},
    "v6e": {"NVFP4"},
    "v7x": {
        *("INT4 row", "INT4 row zeros"),  # .99, and what budgets leave room for
        *("INT4 g32", "INT4 g32 zeros", "INT4 g128", "INT4 g128 zeros", "NVFP4"),
    },
}
# Visits to experts that take more than a tenth above a product of as many rows: of 2,820 bundles of
# this one, which has a whole matrix of gpt-oss, 300 are the visit's own.
ABOVE = {("v7x", "MXFP4", 32): 1.13}
PLAIN = [name for name in budgets.names("v5e") if " of " not in name]
needs_libtpu = needs("v5e")


@pytest.fixture(scope="module")
def profiles() -> dict[str, dict[str, Any]]:
    """Products and decodes by target and name in budgets."""
    rows = () if EVERYTHING else ("--rows", str(budgets.ROWS))
    tokens = () if EVERYTHING else ("--rows", str(budgets.TOKENS))
    command = ("-m", "jentropy.pallas_kernels.profile", "--json", "-")
    products = [(*command, "--formats", *NAMES, *rows, "--tpu", target) for target in TPUS]
    experts = [
        (*command, "--experts", *TOKENS_OF_LAYERS, *tokens, "--formats", *names, "--tpu", target)
        for target, names in OF_EXPERTS.items()
    ]
    found: dict[str, dict[str, Any]] = {target: {} for target in TPUS}
    for document in outputs(*products, *experts):
        found[document["target"]] |= {
            one["name"]: one for one in (*document["products"], *document["decodes"])
        }
    return found


@pytest.fixture(scope="module")
def compiled() -> dict[str, dict[str, str | None]]:
    """Errors of the compiler by target and case, None where there was none."""
    parts = [str(part) for part in range(PARTS)] if EVERYTHING else ["sampled"]
    work = [(target, part) for target in TPUS for part in parts]
    errors: dict[str, dict[str, str | None]] = {target: {} for target in TPUS}
    for (target, _), made in zip(
        work, outputs(*(("-m", __name__, *one) for one in work)), strict=True
    ):
        errors[target] |= made
    return errors


@needs_libtpu
@pytest.mark.parametrize("name", PLAIN if EVERYTHING else sorted(HELD))
@pytest.mark.parametrize("target", TPUS)
def test_schedules_stay_within_their_budgets(profiles, target, name):
    figures = profiles[target][name]["held"]
    assert set(budgets.load()[target][name]) == set(figures)
    assert not budgets.exceeded(target, {name: figures})


@needs_libtpu
@pytest.mark.parametrize("target", OF_EXPERTS)
def test_visits_to_experts_stay_within_their_budgets(profiles, target):
    experts = [
        budgets.name_of_experts(name, layer, tokens)
        for name, layer in itertools.product(OF_EXPERTS[target], TOKENS_OF_LAYERS)
        for tokens in TOKENS_OF_LAYERS[layer]
    ]
    assert not budgets.exceeded(target, {one: profiles[target][one]["held"] for one in experts})


@pytest.mark.parametrize("target", TPUS)
def test_visits_to_experts_take_what_products_do(target):
    """Within a tenth, by their budgets, of products of as many rows as windows have."""
    known, windows = budgets.load()[target], set()
    for name, (layer, each) in itertools.product(
        profile.OF_EXPERTS, budgets.TOKENS_OF_LAYERS.items()
    ):
        for tokens in each:
            of = VARIANTS[name].number_format, tpu_grouped.LAYERS[layer], tokens, target
            rows = tpu_grouped.product_of(*of)[1].tile.m
            windows.add(rows)
            visit = known[budgets.name_of_experts(name, layer, tokens)]["ratio"]
            plain = known[budgets.name_of(name, rows)]["ratio"]
            most = ABOVE.get((target, name, rows), 1.1)
            assert visit <= most * plain, (name, layer, tokens, visit, plain)
    assert windows == {16, 32} | {FEW[target] or 16}


@needs_libtpu
@pytest.mark.parametrize("name", PROMISED)
@pytest.mark.parametrize("target", TPUS)
def test_the_slower_of_schedule_and_memory_beats_the_dense_product(profiles, target, name):
    assert profiles[target][name]["dense_share"] < 1


@needs_libtpu
@pytest.mark.parametrize("target", TPUS)
def test_every_plan_compiles(compiled, target):
    errors = {case: error for case, error in compiled[target].items() if error}
    assert not errors, errors
    kinds = {case.split(":")[0] for case in compiled[target]}
    assert kinds == {"product", "decode", "layers"}


def over_layers(product: Any) -> Any:
    """A loop that takes matrices out of a stack, to be multiplied and to be decoded."""

    def run(x: jax.Array, layers: ResidentTensor) -> tuple[jax.Array, jax.Array]:
        def layer(x: jax.Array, i: jax.Array) -> tuple[jax.Array, jax.Array]:
            return product(x, layers[i]).astype(x.dtype), decode(layers[i], jnp.bfloat16)[0]

        return jax.lax.scan(layer, x, jnp.arange(STACKED[0]))

    return run


def copied(program: str, layers: ResidentTensor) -> str | None:
    """What a program does with the words of one layer, which are most of its bytes."""
    shape = ",".join(str(size) for size in layers.arrays["words"].shape[1:])
    made = [line.strip() for line in program.splitlines() if f"= u32[{shape}]" in line]
    return made[0] if made else None


def held(target: str) -> list[plans.Case]:
    """Whose products and decodes are compiled to be held to their budgets."""
    weights = {n: tpu.resident(VARIANTS[n].number_format, *tpu.SHAPE, target) for n in PROMISED}
    return [
        plans.Case(
            layer="large",
            variant=name,
            m=budgets.ROWS,
            weight=weight,
            plan=kernels_of(weight).plan(weight, budgets.ROWS, TPUS[target]),
        )
        for name, weight in weights.items()
    ]


def numbers_of(case: plans.Case) -> tuple[str, ...]:
    """What a tile is decoded from, whatever its blocks."""
    own = case.weight.number_format
    return case.weight.layout, own.element.name, *(one.name for one in own.parameters)


def samples() -> dict[str, list[plans.Case]]:
    """By TPU, beside what is held: every variant, and rows and tiles that no other TPU has."""
    chosen: dict[str, list[plans.Case]] = {}
    others, seen = {}, set()
    for target in TPUS:
        known = held(target)
        variants = {case.variant for case in known}
        cases = plans.sampled(kernels_in(target), known)
        firsts = plans.distinct(cases, lambda case: case.variant)
        chosen[target] = [case for case in firsts if case.variant not in variants]
        others[target] = [case for case in cases if case not in chosen[target]]
        seen |= set.union(*(case.traits() for case in (*known, *chosen[target])))
    for turn, row in enumerate(itertools.zip_longest(*others.values())):
        for place in range(len(TPUS)):
            at = (turn + place) % len(TPUS)  # each TPU is the first in turn
            case = row[at]
            if case is not None and not case.traits() <= seen:
                seen |= case.traits()
                chosen[list(TPUS)[at]].append(case)
    return chosen


def kernels_in(target: str) -> list[plans.Case]:
    """What the layers of sampled models run on a TPU."""
    return plans.distinct(plans.cases(target, SAMPLED))


def work_of(target: str, part: str) -> dict[str, tuple[Any, ...]]:
    """Functions and arguments to compile, by name."""
    measured = held(target) if part == "sampled" else []
    if part == "sampled":
        products = samples()[target]
    else:
        products = plans.distinct(plans.cases(target, tuple(plans.LAYERS)))
    decoded = numbers_of if part == "sampled" else plans.Case.layout
    known = set(map(decoded, measured))
    work: dict[str, tuple[Any, ...]] = {}
    for case in products:
        x = jax.ShapeDtypeStruct((case.m, case.weight.shape[1]), jnp.bfloat16)
        work[f"product: {case}"] = (tpu.product_of(case.weight, case.m, target), x, case.weight)
    for case in plans.distinct(products, decoded):
        if decoded(case) not in known:
            work[f"decode: {case}"] = (lambda w: decode(w, jnp.bfloat16), case.weight)
    for name in STACKS_OF[target]:
        weight = tpu.resident(VARIANTS[name].number_format, *STACKED[1:])
        x = jax.ShapeDtypeStruct((16, STACKED[1]), jnp.bfloat16)
        layers = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct((STACKED[0], *a.shape), a.dtype), weight
        )
        work[f"layers: {name}"] = (over_layers(tpu.product_of(weight, 16, target)), x, layers)
    return work if part == "sampled" else dict(list(work.items())[int(part) :: PARTS])


def main(target: str, part: str) -> None:
    """Compiles, and prints what came of it as JSON."""
    compiling.prepare(target)
    results: dict[str, str | None] = {}
    for name, arguments in work_of(target, part).items():
        start = time.perf_counter()
        try:
            program = compiling.compile_for(target, *arguments)
            results[name] = None
            if name.startswith("layers"):
                results[name] = copied(program.as_text(), arguments[-1])
        except Exception as error:
            results[name] = f"{type(error).__name__}: {error}"[:2000]
        print(f"{time.perf_counter() - start:.1f} s {name}", file=sys.stderr)
    print(json.dumps(results))


@pytest.mark.usefixtures("compiled_quickly")
@pytest.mark.parametrize("name", profile.BUDGETED)
@pytest.mark.parametrize(("k", "n"), [(512, 256), (700, 640), (2880, 384)])
def test_abstract_weights_are_what_to_resident_makes(name, k, n):
    number_format = VARIANTS[name].number_format
    dense = jnp.asarray(np.random.default_rng(0).standard_normal((n, k)) * 0.02, jnp.bfloat16)
    expected = as_read(to_resident(weight_of(number_format, dense), "tpu"))
    made = tpu.resident(number_format, k, n)
    skipped = {"shift", "inline", "exact", "large"}  # what numbers decide
    assert made.layout == expected.layout
    assert made.shape == expected.shape
    assert made.number_format.parameters == expected.number_format.parameters
    assert {k: v for k, v in made.options if k not in skipped} == {
        k: v for k, v in expected.options if k not in skipped
    }
    described = [
        {name: (array.shape, array.dtype) for name, array in w.arrays.items()}
        for w in (made, expected)
    ]
    for one in described:
        for decided_by_numbers in ("escapes", "rare"):
            one.pop(decided_by_numbers, None)
    assert described[0] == described[1]


def test_plans_differ_in_what_decides_a_kernel_only():
    cases = list(plans.cases("v6e", SAMPLED))
    distinct = plans.distinct(cases)
    assert len({str(case) for case in distinct}) == len(distinct) < len(cases)
    assert {case.variant for case in distinct} >= set(PROMISED)
    eight = {case.variant for case in distinct if case.m == 8}
    assert eight <= {"NVFP4"}, "others run as M = 1 does"
    assert len(plans.distinct(distinct, plans.Case.layout)) < len(distinct)
    chosen = plans.sampled(distinct)
    assert len(chosen) < len(distinct) / 4
    assert set.union(*(c.traits() for c in chosen)) == set.union(*(c.traits() for c in distinct))


def test_samples_of_all_tpus_have_all_that_plans_differ_in():
    chosen = {target: [*cases, *held(target)] for target, cases in samples().items()}
    every = {target: kernels_in(target) for target in TPUS}

    def traits(cases: dict[str, list[plans.Case]]) -> set[object]:
        return set.union(*(one.traits() for one in itertools.chain(*cases.values())))

    assert traits(chosen) == traits(every)
    for target in TPUS:
        assert {case.variant for case in every[target]} <= {case.variant for case in chosen[target]}


def test_budgets_are_below_what_is_promised():
    known = budgets.load()
    assert set(known) == set(compiling.COMPILERS)
    for target in known:
        assert list(known[target]) == budgets.names(target)
        for name, budget in known[target].items():
            for what, most in budgets.ceilings(target, name).items():
                assert budget[what] <= most, (target, name, what)
    for target, names in BUSY.items():
        for name in (name for name, variant in VARIANTS.items() if variant.ceilings):
            assert known[target][name]["with_waits"] < 1 or name in names, (target, name)
    with pytest.raises(KeyError, match="BF17 on v5e"):
        budgets.ceilings("v5e", "BF17")


BUNDLES = """
LB: loop body
     0   :  { %1 = sst [smem:[#allocation7]] 1 } /* Start region 1 */
   0x1 LB: > { %s2 = sadd.s32 1, %s1 } /* Start region 9 :: Start region 2 */
   0x2   : > { %p1_p0 = scmp.ne.s32.totalorder %s5_s5, 0 }
   0x3   : > { %9 = sbr.rel (%p1_p0) target = $region4 }
   0x4   :  {} /* End region 2 */
   0x5   : > { %10 = vst [vmem:[#allocation2]] %v1 }
   0x6   : > { %11 = vst [vmem:[#allocation2]] %v1 } /* End region 3 */
   0x7 PF: > { %p2_p0 = scmp.ne.s32.totalorder %s5_s5, 7 } /* Start/End empty region 4 */
   0x8 LB: >> { %v1 = vadd.f32 %v2, %v3 } /* Start region 5 */
   0x9   : >> { %p3_p1 = scmp.ge.s32.totalorder %s6_s6, 16 }
   0xa   : >> { %12 = sbr.rel (!%p3_p1) target = $region5 }
   0xb   :  {} /* End region 5 */
   0xc LB: >> { %v1 = vadd.f32 %v2, %v3 } /* Start region 6 */
   0xd   : >> { %13 = sbr.rel (!%p4_p1) target = $region6 }
   0xe   :  {} /* End region 6 */
   0xf   : > { %p5_p1 = scmp.ge.s32.totalorder %s2, 10 /* loop exit test */ }
  0x10   : > { %14 = sbr.rel (!%p5_p1) target = $region9 }
  0x11   :  {} /* End region 9 */
  0x12   :  { %15 = vsyncpa [#allocation7], 1 } /* exit bundle: %toy.1 = custom-call(%x) */
"""


def dump(folder: Path, usage: str, bundles: str = BUNDLES) -> None:
    """Files of a kernel; the scheduler's own names where branches go otherwise, and waits."""
    scheduled = re.sub(r"= \$region(\d+)", r"bundleno = 7 (0x7), region = \1", bundles)
    waiting = "   0x9   :  {}\n" * 2
    scheduled = scheduled.replace("   0x9   : >> {", waiting + "   0x9   : >> {")
    for name, text in {
        "68-final_hlo-static-per-bundle-utilization": usage,
        "70-final_bundles": bundles,
        "63-packed-bundles-post-ra": scheduled,
        "62-schedule-analysis_packed-bundles-post-ra": "",
    }.items():
        (folder / f"1-toy.1-{name}.txt").write_text(text)


def test_schedules_are_read_with_their_loops_and_conditions(tmp_path):
    usage = "\n".join(" ".join(["1", *"0" * 7, str(int(i == 5)), "2"]) for i in range(0x13))
    dump(tmp_path, usage)
    read = schedule.read(tmp_path, "toy", steps=8, trips=3)
    assert read.loops == ((16.0, 4), (3.0, 3))
    straight = 7 + 3  # up to the first loop, and after the second
    assert read.upper == straight + 16 * 4 + 3 * 3
    assert read.bundles == read.upper - 2 * 7 / 8  # two that one step of eight runs
    assert read.cycles == read.bundles + 2 * 16  # of the first loop's trips
    assert read.hot == 3 + 16 * 4 + 3 * 3
    assert read.slots["MXU"] == read.bundles
    assert read.spills == 1 / 8
    with pytest.raises(InputError, match="schedules of other"):
        schedule.read(tmp_path, "other", steps=8)


def test_the_units_of_newer_dumps_are_told_by_their_names(tmp_path):
    names = "MATMUL, MATPUSH, XLU, VALU, VPOP, EUP, VLOAD, VLOAD:FILL, VSTORE, VSTORE:SPILL, SALU"
    head = f"== CAPACTIY:\n{names}\n    4     4     3\n== UTILIZATION:\n"
    rows = "\n".join(["1 2 0 0 0 0 0 0 0 1 3"] * 0x13)
    dump(tmp_path, head + rows)
    read = schedule.read(tmp_path, "toy", steps=8, trips=3)
    assert read.slots["MXU"] == read.spills == read.bundles
    assert read.slots["SALU"] == 3 * read.bundles
    dump(tmp_path, head.replace("MATMUL", "TENSOR") + rows)
    with pytest.raises(InputError, match=r"use of slots: .* found TENSOR, .*libtpu"):
        schedule.read(tmp_path, "toy", steps=8, trips=3)


@pytest.mark.parametrize("first_step", [False, True])
def test_conditions_that_were_saved_are_told_from_numbers(tmp_path, first_step):
    """%p1_p0 comes back from memory: whether this is the first step, or anything else."""
    what = "scmp.ne.s32.totalorder %s4_s4, 0" if first_step else "por %p7_p7, %p8_p8"
    saved = (
        f"{{ %p9_p9 = {what}  ;;  "
        "%s6_s6 = scalar_select /*predicate=*/%p9_p9, /*on_true=*/1, /*on_false=*/0  ;;  "
        "%2 = sst [smem:[#allocation9_spill]] %s6_s6  ;;  "
        "%s5_s5 = sld [smem:[#allocation9_spill]]  ;;  %p1_p0 ="
    )
    text = BUNDLES.replace("{ %p1_p0 =", saved)
    assert text != BUNDLES
    dump(tmp_path, "\n".join(["1" + " 0" * 9] * 0x13), text)
    read = schedule.read(tmp_path, "toy", steps=8)
    assert read.upper - read.bundles == (2 * 7 / 8 if first_step else 0)


def test_the_command_says_what_it_has_not(capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for kind in ("--tpu", "v5e"), ("--gpu", "h200"):
        assert profile.main([*kind]) == 2
        error = capsys.readouterr().err
        assert "jentropy[aot]" in error
        assert error.count("\n") == 1


def test_budgets_are_set_by_what_was_measured(tmp_path, monkeypatch):
    step = schedule.Schedule(
        bundles=100.0, cycles=150.0, upper=100.0, hot=90.0, slots={"SPILL": 5.0}, loops=()
    )
    figures = tpu.Figures(m=16, tile=(1024, 1024), schedule=step, hbm_cycles=200.0)
    measured = {"INT8 row": figures.budgeted()}
    budget = {"ratio": 0.6, "with_waits": 0.8, "bundles": 90.0, "spills": 6.0}
    path = tmp_path / "kernels.json"
    monkeypatch.setattr(budgets, "path", lambda: path)
    path.write_text(json.dumps({"v6e": {"INT8 row": budget}}))
    assert budgets.exceeded("v6e", measured) == ["INT8 row: bundles 100.000 above 90.0"]
    assert len(budgets.exceeded("v7x", measured)) == 4, "what has no budget exceeds it"
    budgets.write("v6e", measured, min)
    lowered = {"ratio": 0.5, "with_waits": 0.758, "bundles": 90.0, "spills": 6.0}  # to its ceiling
    assert budgets.load() == {"v6e": {"INT8 row": lowered}}
    budgets.write("v6e", measured, max)
    assert budgets.load()["v6e"]["INT8 row"]["bundles"] == 101.0
    assert budgets.proposed("v7x", "MXFP8", figures.budgeted())["ratio"] == 0.505
    slow = dataclasses.replace(figures, hbm_cycles=50.0).budgeted()
    assert budgets.proposed("v7x", "MXFP8", slow)["ratio"] == 1.0
    assert budgets.proposed("v7x", "INT8 row" + budgets.DECODE, slow)["ratio"] == 1.0
    assert budgets.proposed("v7x", "INT8 row", slow)["ratio"] == 0.65
    with pytest.raises(KeyError):
        budgets.proposed("v7x", "FP8", slow)


def test_crossovers_are_where_the_passes_cost_more_than_decoding():
    flat, macs = dict.fromkeys((16, 64, 256), 100.0), 8 * tpu.UNIT
    steep = {16: 100.0, 64: 200.0}  # 600 for 256 rows
    assert crossover.fused_rows(steep, 0.0, steep, macs) == 256  # then the dense one is the faster
    assert crossover.fused_rows(steep, 200.0, flat, macs) == 112
    assert crossover.fused_rows(flat, 0.0, flat, macs) == 256  # two passes are one too many
    assert crossover.fused_rows(dict.fromkeys(flat, 1.0), 0.0, flat, macs) == crossover.MOST
    assert crossover.fused_rows(steep, 0.0, dict.fromkeys(flat, 50.0), macs) == 0
    by_mxu = tpu.UNIT  # a row in a cycle: 256 of them are 156 more than decoding takes
    assert crossover.fused_rows(flat, 0.0, dict.fromkeys(flat, 50.0), by_mxu) == 0
    assert crossover.fused_rows(flat, 10.0, flat, by_mxu) == crossover.MOST


def test_every_plan_has_a_crossover():
    budgeted = [name for name, variant in VARIANTS.items() if variant.ceilings]
    for target, rows in FUSED_ROWS.items():
        assert list(rows) == budgeted
        for name in budgeted:
            weight = tpu.resident(VARIANTS[name].number_format, 2048, 2048, target)
            most = rows[name]
            assert kernels_of(weight).plan(weight, most, TPUS[target]).few
            assert not kernels_of(weight).plan(weight, most + 1, TPUS[target]).fused


def test_the_command_fails_where_a_budget_is_exceeded(tmp_path, monkeypatch, capsys):
    step = schedule.Schedule(
        bundles=1e6,
        cycles=1e6,
        upper=1e6,
        hot=1e6,
        slots=dict.fromkeys(schedule.SLOTS, 0.0),
        loops=(),
    )
    figures = tpu.Figures(m=16, tile=(1024, 1024), schedule=step, hbm_cycles=200.0)
    monkeypatch.setattr(tpu, "measured", lambda *_: [("INT8 row", figures), ("FP8 M=64", figures)])
    monkeypatch.setattr(compiling, "prepare", lambda *_: None)
    monkeypatch.setattr(compiling, "versions", lambda *_: {"jax": "0"})
    assert profile.main(["--tpu", "v5e"]) == 0
    assert profile.main(["--tpu", "v5e", "--check"]) == 1
    out, err = capsys.readouterr()
    assert "1000000" in out
    assert "INT8 row: ratio 5000" in err


if __name__ == "__main__":
    main(*sys.argv[1:])
