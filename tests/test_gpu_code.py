"""Machine code of the Hopper kernels, from the real compilers: no GPU is needed, nothing is run.

By default kernels are sampled by what they differ in; JENTROPY_AOT=all compiles every one.
"""

from __future__ import annotations

import json
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jentropy
from jentropy.pallas_kernels import to_resident
from jentropy.pallas_kernels.fused import kernels_of
from jentropy.pallas_kernels.profiling import (
    budgets,
    compiling,
    hopper,
    hopper_grouped,
    pace,
    sass,
)
from jentropy.pallas_kernels.variants import VARIANTS, abstract_weight

from . import plans
from .compilers import EVERYTHING, needs, outputs

TARGET = hopper.TARGET
EXPERTS = {  # rows of x, experts, K, N
    "gpt-oss-120b gate and up": (64, 128, 2880, 5760),
    "gpt-oss-120b down": (512, 128, 2880, 2880),
    "DeepSeek-V3 gate, up": (128, 256, 7168, 2048),
    "DeepSeek-V3 down": (4096, 256, 2048, 7168),
    "one expert": (3, 1, 256, 128),
}
needs_compilers = needs(TARGET)
SAMPLE = ("BF16 of gpt-oss-120b", "MXFP4 of DeepSeek-V3 down")
SAMPLE += ("MXFP8 M=16", "NVFP4 M=16", "INT4 g128 zeros M=16")
# Of BF16 for all rows of x, of other formats some if not everything is compiled.
NAMES = [
    name
    for name in budgets.names(TARGET)
    if EVERYTHING or name.startswith("BF16 M=") or name in SAMPLE
]


@pytest.fixture(scope="module")
def products() -> dict[str, dict[str, Any]]:
    """Figures of products, by layer and rows of x or name of a budget; and of the decode."""
    return outputs(("-m", __name__))[0]


def main() -> None:
    """Compiles, and prints what came of it as JSON."""
    with tempfile.TemporaryDirectory() as folder:
        dump = Path(folder)
        compiling.prepare(TARGET, dump)
        k, n = hopper.SHAPE
        cases = plans.distinct(plans.cases(TARGET))
        if not EVERYTHING:
            cases = [case for case in cases if case.variant == "BF16"]
            # Those of the budgets' layer first: they are compiled in any case.
            cases = plans.sampled(sorted(cases, key=lambda case: case.weight.logical != (n, k)))
        work = {}
        figures, known = {}, {}
        for name in NAMES:
            variant, _, layer = name.partition(budgets.OF_EXPERTS)
            if layer:
                of = VARIANTS[variant].number_format, hopper_grouped.LAYERS[layer]
                figures[name] = hopper_grouped.measure(dump, TARGET, *of).to_json()
                continue
            variant, _, m = name.partition(" M=")
            weight = hopper.resident(VARIANTS[variant].number_format, k, n)
            work[name] = int(m), hopper.plan_of(weight, int(m)), weight
        work |= {str(case): (case.m, case.plan, case.weight) for case in cases}
        for name, (m, plan, weight) in work.items():  # no kernel is compiled twice in a process
            key = hopper.kernel_of(plan, weight)
            if key not in known:
                known[key] = hopper.measure(dump, TARGET, m, plan, weight).to_json()
            figures[name] = known[key]
        _, plan, weight = work["BF16 M=16"]
        layers = jax.tree.map(lambda a: jax.ShapeDtypeStruct((2, *a.shape), a.dtype), weight)
        run = hopper.one_pass(weight, plan)
        x = jax.ShapeDtypeStruct((plan.m, plan.k), jnp.bfloat16)
        index = jax.ShapeDtypeStruct((), jnp.int32)
        work = {"one of a stack": (lambda x, w, i: run(x, w[i]), x, layers, index)}
        for dtype in (jnp.float32,) if EVERYTHING else (jnp.bfloat16, jnp.float32):
            decode = partial(kernels_of(weight).decode, dtype=jnp.dtype(dtype))
            work[f"decode to {jnp.dtype(dtype)}"] = (decode, weight)
        for variant in budgets.HOPPER_VARIANTS if EVERYTHING else ():
            packed = hopper.resident(VARIANTS[variant].number_format, k, n)
            decode = partial(kernels_of(packed).decode, dtype=np.dtype(jnp.bfloat16))
            work[f"{variant} decode"] = (decode, packed)
        for name, arguments in work.items():
            (kernel,) = hopper.code_of(dump, TARGET, *arguments)
            figures[name] = {"registers": kernel.registers, "spill_bytes": kernel.spill_bytes}
        for layer, experts in EXPERTS.items() if EVERYTHING else ():
            figures[layer] = _of_experts(dump, *experts)
        jax.clear_caches()
        figures["layers alike"] = _kernels_of_layers(weight)
    print(json.dumps(figures))


def _of_experts(dump: Path, rows: int, experts: int, k: int, n: int) -> dict[str, int]:
    """Registers of the one kernel of a product of rows with experts."""
    number_format = VARIANTS["BF16"].number_format
    weight = to_resident(abstract_weight(number_format, (experts, n, k)), "gpu")
    x = jax.ShapeDtypeStruct((rows, k), jnp.bfloat16)
    sizes = jax.ShapeDtypeStruct((experts,), jnp.int32)
    product = partial(jentropy.grouped_matmul, transpose_w=True)
    (kernel,) = hopper.code_of(dump, TARGET, product, x, weight, sizes)
    return {"registers": kernel.registers, "spill_bytes": kernel.spill_bytes}


def _kernels_of_layers(weight: Any) -> dict[str, dict[str, int]]:
    """What three equal products of three rows are lowered to; 64 bits or not."""

    def layers(x: Any, weights: Any) -> Any:
        return [jentropy.matmul(x, w, transpose_w=True) for w in weights]

    x = jax.ShapeDtypeStruct((3, weight.shape[1]), jnp.bfloat16)
    lowered = {}
    for wide in (False, True):
        with jax.enable_x64(wide):
            text = compiling.lower_for(TARGET, layers, x, [weight] * 3).as_text()
            counts = {"kernels": text.count("@mosaic_gpu"), "pads": text.count("stablehlo.pad")}
            lowered["64 bits" if wide else "32 bits"] = counts
    return lowered


@needs_compilers
def test_layers_alike_share_a_kernel_and_few_rows_are_not_padded(products):
    alike = {"kernels": 1, "pads": 0}
    assert products["layers alike"] == {"32 bits": alike, "64 bits": alike}


@needs_compilers
def test_code_of_every_kernel_is_within_its_limits(products):
    assert len(products) > 8
    for name, product in products.items():
        for what, most in budgets.HOPPER.items():
            assert product.get(what, 0) <= most, (name, what)
        if "loop" in product:
            assert product["loop"]["HGMMA"] >= product["tile_k"] // 16, name
            most = 64 if "BF16" in name else 16  # fewer bytes leave less time for products
            is_short = budgets.OF_EXPERTS in name and product["tile_k"] == 128
            assert product["loop_share"] < 1 or product["plan_m"] > most or is_short, name


@needs_compilers
@pytest.mark.parametrize("name", NAMES)
def test_code_stays_within_its_budgets(products, name):
    measured = {what: products[name][what] for what in budgets.load()[TARGET][name]}
    assert set(measured) == set(budgets.ceilings(TARGET, name))
    assert not budgets.exceeded(TARGET, {name: measured})


def test_loops_are_read_from_code():
    code = """
.L_x_0:
        /*0000*/                   MOV R1, c[0x0][0x28] ;                 /* 0x00000a0000017a02 */
                                                                          /* 0x000e4a0000200f00 */
        /*0010*/              @!P0 LOP3.LUT R2, R2, 0xff, RZ, 0xc0, !PT ; /* 0x000000ff02028812 */
                                                                          /* 0x002fe200078ec0ff */
.L_x_1:
        /*0020*/                   HGMMA.64x8x16.F32.BF16 R24, R4, gdesc[UR4], R24 ;
        /*0030*/               @P1 BRA `(.L_x_1) ;
        /*0040*/                   BRA `(.L_x_2) ;
        /*0050*/               @P0 BRA `(.L_x_0) ;
.L_x_2:
        /*0060*/                   EXIT ;
"""
    code = sass.code_of(code.splitlines())
    inner, outer = (sass.operations(code[slice(*loop)]) for loop in sass.loops_of(code))
    assert inner == {"HGMMA": 1, "BRA": 1}
    assert outer == {"MOV": 1, "LOP3": 1, "HGMMA": 1, "BRA": 3}
    assert (code[0].stall, code[0].sets, code[0].waits) == (5, (1,), 0)
    assert (code[1].stall, code[1].sets, code[1].waits) == (1, (), 0b10)


def play(*code: tuple[str, str, dict[str, Any]]) -> pace.Pace:
    """Of a loop."""
    usual = {"guarded": False, "target": None, "stall": 1, "sets": (), "waits": 0}
    made = [sass.Instruction(name=n, rest=r, **(usual | more)) for n, r, more in code]
    end = sass.Instruction(name="BRA", rest="", **(usual | {"target": 0, "guarded": True}))
    return pace.pace_of([*made, end], (0, len(made) + 1))


def test_pace_is_of_stalls_units_and_what_is_waited_for():
    last = pace.BRANCH_CYCLES
    assert play(*[("UMOV", "", {})] * 50).cycles == pytest.approx(2 * 51, abs=2 * last)
    assert play(*[("UMOV", "", {"stall": 9})] * 10).cycles == pytest.approx(90, abs=2 * last)
    assert play(*[("LOP3", "", {})] * 50).cycles == pytest.approx(2 * 2 * 50, abs=2 * last)
    load = ("LDS", "R0, [R1]", {"sets": (0,)})
    waited = play(load, ("UMOV", "", {"waits": 1}))
    assert waited.cycles >= pace.LATENCY["LDS"] > play(load, ("UMOV", "", {})).cycles
    product = ("HGMMA", ".64x256x16.F32.BF16 R24, R32, gdesc[UR12], R24, gsb0", {})
    wait = ("WARPGROUP", ".DEPBAR.LE gsb0, 0x0", {})
    assert play(product, wait).cycles >= 128 + pace.PRODUCT_LATENCY


@pytest.mark.parametrize(("n", "k"), [(256, 512), (300, 700)])
def test_abstract_weights_are_what_to_resident_makes(n, k):
    dense = np.random.default_rng(0).standard_normal((n, k)) * 0.02
    made = hopper.resident(VARIANTS["BF16"].number_format, k, n)
    expected = to_resident(jnp.asarray(dense, jnp.bfloat16), "gpu")
    assert made.layout == expected.layout
    assert made.options == expected.options
    assert made.shape == expected.shape
    described = [
        {name: (array.shape, array.dtype) for name, array in w.arrays.items()}
        for w in (made, expected)
    ]
    assert described[0] == described[1]


if __name__ == "__main__":
    main()
