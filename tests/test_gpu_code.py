"""Machine code of the Hopper kernels, from the real compilers: no GPU is needed, nothing is run."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jentropy.pallas_kernels import to_resident
from jentropy.pallas_kernels.profiling import budgets, gpu, gpu_report, sass

needs_compilers = pytest.mark.skipif(
    bool(gpu.missing()), reason=f"not installed: {', '.join(gpu.missing())}"
)


@pytest.fixture(scope="module")
def products() -> dict[str, dict[str, Any]]:
    """Figures of a product of every distinct kernel, by layer and rows of x; and of the decode."""
    done = subprocess.run(
        [sys.executable, __file__], capture_output=True, text=True, timeout=1500, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Compiles, and prints what came of it as JSON."""
    import jax

    with tempfile.TemporaryDirectory() as folder:
        dump = Path(folder)
        gpu.prepare(dump)
        k, n = gpu_report.SHAPE
        cases = [(f"{layer} M={m}", plan) for layer, m, plan in gpu_report.distinct()]
        cases += [(gpu_report.name_of(m), gpu.plan_of(m, n, k)) for m in gpu_report.ROWS]
        found, known = {}, {}
        for name, plan in cases:  # no kernel is compiled twice in a process
            if plan not in known:
                known[plan] = gpu.measure(dump, plan.m, plan.n, plan.k)
            found[name] = gpu_report.to_json(plan.m, known[plan])
        from jentropy.pallas_kernels.decode import gpu as decode
        from jentropy.pallas_kernels.decode_matmul import gpu_window12

        plan, weight = gpu.plan_of(16, n, k), gpu.abstract_weight(n, k)
        layers = jax.tree.map(lambda a: jax.ShapeDtypeStruct((2, *a.shape), a.dtype), weight)
        (kernel,) = gpu.compile_for(
            dump,
            lambda x, w, i: gpu_window12.multiply(
                x, w[i], plan, out_dtype=jnp.bfloat16, interpret=False
            ),
            jax.ShapeDtypeStruct((plan.m, plan.k), jnp.bfloat16),
            layers,
            jax.ShapeDtypeStruct((), jnp.int32),
        )
        found["one of a stack"] = {
            "registers": kernel.registers,
            "spill_bytes": kernel.spill_bytes,
        }
        jax.clear_caches()
        found["layers alike"] = _kernels_of_layers(weight)
        for dtype in (jnp.bfloat16, jnp.float32):
            (kernel,) = gpu.compile_for(
                dump, lambda w, dtype=dtype: decode.dense(w, dtype), gpu.abstract_weight(n, k)
            )
            name = f"decode to {jax.numpy.dtype(dtype)}"
            found[name] = {"registers": kernel.registers, "spill_bytes": kernel.spill_bytes}
    print(json.dumps(found))


def _kernels_of_layers(weight: Any) -> dict[str, int]:
    """How many kernels three equal products of a program are lowered to; 64 bits or not."""
    import jax
    from jax.sharding import SingleDeviceSharding

    import jentropy

    def layers(x: Any, weights: Any) -> Any:
        return [jentropy.matmul(x, w, transpose_w=True) for w in weights]

    place = SingleDeviceSharding(gpu.topology().devices[0])
    given = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place),
        (jax.ShapeDtypeStruct((3, weight.shape[1]), jnp.bfloat16), [weight] * 3),
    )
    lowered = {}
    for wide in (False, True):
        with jax.enable_x64(wide):
            text = jax.jit(layers).lower(*given).as_text()
            lowered["64 bits" if wide else "32 bits"] = text.count("@mosaic_gpu")
    return lowered


@needs_compilers
def test_layers_alike_share_a_kernel(products):
    assert products["layers alike"] == {"32 bits": 1, "64 bits": 1}


@needs_compilers
def test_code_of_every_kernel_is_within_its_limits(products):
    for name, product in products.items():
        if name == "layers alike":
            continue
        assert product["spill_bytes"] == 0, name
        assert product["registers"] <= 168, name
        if "loop" in product:
            assert product["loop"]["HGMMA"] >= product["tile_k"] // 16, name
            assert product["integer_per_pair"] <= 3.2, name
            assert product["issue_share"] < 0.5, name


@needs_compilers
@pytest.mark.parametrize("m", gpu_report.ROWS)
def test_code_stays_within_its_budgets(products, m):
    name = gpu_report.name_of(m)
    held = {what: products[name][what] for what in budgets.load()[gpu_report.TARGET][name]}
    gpu_report.check_budgets({name: held})


def test_budgets_are_below_what_is_promised():
    held = budgets.load()[gpu_report.TARGET]
    assert set(held) == {gpu_report.name_of(m) for m in gpu_report.ROWS}
    for own in held.values():
        assert all(own[name] <= most for name, most in gpu_report.CEILINGS.items())


def test_loops_are_read_from_code():
    code = """
.L_x_0:
        /*0000*/                   MOV R1, c[0x0][0x28] ;
        /*0010*/              @!P0 LOP3.LUT R2, R2, 0xff, RZ, 0xc0, !PT ;
.L_x_1:
        /*0020*/                   HGMMA.64x8x16.F32.BF16 R24, R4, gdesc[UR4], R24 ;
        /*0030*/               @P1 BRA `(.L_x_1) ;
        /*0040*/                   BRA `(.L_x_2) ;
        /*0050*/               @P0 BRA `(.L_x_0) ;
.L_x_2:
        /*0060*/                   EXIT ;
"""
    inner, outer = sass.loops_of(code.splitlines())
    assert inner == {"HGMMA": 1, "BRA": 1}
    assert outer == {"MOV": 1, "LOP3": 1, "HGMMA": 1, "BRA": 3}


@pytest.mark.parametrize(("n", "k"), [(256, 512), (300, 700)])
def test_abstract_weights_are_what_to_resident_makes(n, k):
    dense = np.random.default_rng(0).standard_normal((n, k)) * 0.02
    made = gpu.abstract_weight(n, k)
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
