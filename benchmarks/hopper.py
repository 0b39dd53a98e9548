"""Everything that a Hopper GPU has to tell, in one run of under nine minutes.

    python3 benchmarks/hopper.py OUT [--seconds 540] [--parts right,times:90] [--dry]

Every finding is a line of JSON in OUT/results.jsonl as soon as it is known, and a short line on
standard output. A part is a function that yields findings; it runs in a process and a box of time
of its own, so that a kernel that hangs costs its box and nothing else. Nothing has to be installed
but JAX and what jentropy imports. `--dry` runs small shapes in interpret mode, on any machine.

To add a kernel: its cases in `right` and `times`; to add a part: a function and a line in `PARTS`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

START = float(os.environ.get("HOPPER_START", time.time()))
ROOT = Path(__file__).resolve().parent.parent
Finding = tuple[str, dict[str, Any]]
POISONED = 16  # arrays of 256 MiB that hold NaN before what is checked is computed
NO_GRAPHS = "--xla_gpu_enable_command_buffer="
TIMED_ROWS = (16, 1, 64, 256)
LAYERS = (  # in order of what they tell
    "Llama-3-8B gate+up",
    "Llama-3-8B o",
    "Llama-3-8B down",
    "Llama-3-8B q+k+v",
    "Llama-3-70B gate+up",
    "Qwen3-32B gate+up",
    "Llama-3-70B o",
    "Llama-3-70B down",
    "Qwen3-32B down",
    "Qwen3-32B o",
)


def environment(dry: bool) -> Iterator[Finding]:
    """The machine, the versions, and whether the kernels work at all."""
    query = "name,driver_version,clocks.max.sm,clocks.max.mem,power.limit,memory.total"
    for command in (f"nvidia-smi --query-gpu={query} --format=csv,noheader", "ptxas --version"):
        if shutil.which(command.split()[0]):
            run = subprocess.run(command.split(), capture_output=True, text=True, check=False)
            yield command.split()[0], {"text": (run.stdout + run.stderr).strip()[-200:]}
    import jax

    from jentropy import bench
    from jentropy.pallas_kernels import backends

    yield "environment", bench.environment()
    yield "device", {"capability": str(getattr(jax.devices()[0], "compute_capability", None))}
    if not dry:
        began = time.time()
        yield "trouble", {"text": backends.trouble("gpu") or "none", "seconds": time.time() - began}


def right(dry: bool) -> Iterator[Finding]:
    """Products and dense weights against float64, smallest first: where a wrong one is wrong."""
    import jax.numpy as jnp
    import numpy as np

    import jentropy
    from jentropy.pallas_kernels.decode_matmul.gpu_plan import Config

    yield "identity", _identity(dry)
    for case in (
        {"m": 8, "n": 256, "k": 512},
        {"m": 5, "n": 200, "k": 300, "config": Config(tile_k=128, stages=2), "times": 20},
        {"m": 16, "n": 256, "k": 512, "config": Config(tile_k=256, stages=2, rounds=1)},
        {"m": 16, "n": 128, "k": 256, "stack": 3},
        {"m": 3, "n": 128, "k": 256, "precision": "highest"},
    ):
        yield _product(dry, **case)
    if not dry:
        for case in (
            {"m": 1, "n": 4096, "k": 4096, "times": 20},
            {"m": 16, "n": 4096, "k": 4096, "times": 20},
            {"m": 16, "n": 17000, "k": 4096, "times": 5},
            {"m": 64, "n": 6144, "k": 4096, "times": 5},
            {"m": 200, "n": 1000, "k": 1100},
            {"m": 300, "n": 512, "k": 1024},
            {"m": 600, "n": 512, "k": 1024},
            {"m": 16, "n": 4096, "k": 4096, "escapes": 15000},
        ):
            yield _product(dry, **case)
    dense = _gaussian(256, 256, 0)
    dense.view(np.uint16)[[7, 70, 150], [9, 99, 200]] = 0x7F80, 0xFF80, 0x7FC1
    y = jentropy.matmul(jnp.ones((4, 256), jnp.bfloat16), _packed(dense), True, interpret=dry)
    found = sorted({int(i) for i in np.argwhere(~np.isfinite(np.asarray(y, np.float32)))[:, 1]})
    yield "nan and inf", {"columns": found, "right": found == [7, 70, 150]}
    if dry:
        yield _real(dry, 8, 128, 256)
        return
    for m, n, k, stack in (
        (16, 51200, 5120, None),
        (1, 51200, 5120, None),
        (16, 28672, 4096, None),
        (16, 57344, 8192, None),
        (8, 4096, 14336, 60),
        (64, 8192, 28672, None),
        (256, 10240, 8192, None),
    ):
        yield _real(dry, m, n, k, stack)


def decoding(dry: bool) -> Iterator[Finding]:
    """Dense weights bit for bit, every code; and how fast they come."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    import jentropy
    from jentropy.bench.measure import queued_seconds

    for n, k in ((512, 2048),) if dry else ((512, 2048), (4096, 4096)):
        dense = _gaussian(n, k, 0)
        bits = dense.view(np.uint16).reshape(-1)
        codes = np.arange(65536, dtype=np.uint16)
        bits[np.random.default_rng(1).permutation(bits.size)[: codes.size]] = codes
        weight = _packed(dense)
        for dtype in (jnp.bfloat16,) if dry else (jnp.bfloat16, jnp.float32):
            found = np.asarray(jentropy.decode(weight, dtype, interpret=dry))
            expected = dense if dtype == jnp.bfloat16 else np.asarray(jnp.asarray(dense, dtype))
            unsigned = np.dtype(f"u{found.itemsize}")
            wrong = int((found.view(unsigned) != expected.view(unsigned)).sum())
            yield f"decode {n} x {k} {jnp.dtype(dtype)}", {"wrong": wrong}
    for n, k in () if dry else ((4096, 4096), (28672, 4096), (57344, 8192)):
        weight = random_weight(n, k)
        seconds = queued_seconds(partial(jax.jit(jentropy.decode), weight))
        moved = weight.nbytes + 2 * n * k
        yield (
            f"decode N={n} K={k}",
            {"microseconds": 1e6 * seconds, "gigabytes_per_second": moved / seconds / 1e9},
        )


def ceilings(dry: bool) -> Iterator[Finding]:
    """What memory gives, and what a kernel and a call cost."""
    import jax
    import jax.numpy as jnp

    from jentropy.bench.measure import median_seconds, queued_seconds

    array = jnp.arange(1 << (16 if dry else 28), dtype=jnp.uint32)
    for name, run, bytes_ in (
        ("copy", jax.jit(lambda a: a + 1), 2 * array.nbytes),
        ("read", jax.jit(lambda a: a.max()), array.nbytes),
    ):
        yield name, {"gigabytes_per_second": bytes_ / queued_seconds(partial(run, array)) / 1e9}

    def chain(x: jax.Array) -> jax.Array:
        for _ in range(64):
            x = jax.lax.optimization_barrier(x * 1.0001)
        return x

    small = jnp.ones((8, 128), jnp.float32)
    yield "a kernel", {"microseconds": 1e6 * queued_seconds(partial(jax.jit(chain), small)) / 64}
    once = median_seconds(partial(jax.jit(lambda x: x * 1.0001), small), 100)
    yield "a call that is awaited", {"microseconds": 1e6 * once}


def times(dry: bool) -> Iterator[Finding]:
    """Products beside the dense ones, by the wall clock."""
    import jentropy
    from jentropy.bench import matmul, measure

    if dry:
        matmul.MOST_LAYERS, measure.REPEATS = 2, 1
    ours = partial(jentropy.matmul, transpose_w=True, interpret=dry)
    for layer in LAYERS[:1] if dry else LAYERS:
        n, k = (128, 256) if dry else matmul.SHAPES[layer]
        weight = random_weight(n, k)
        weights = matmul.alike(weight, matmul.layer_count(n, k))
        dense = matmul.layers_of(n, k)
        for m in TIMED_ROWS[:1] if dry else TIMED_ROWS:
            taken = [
                matmul.seconds(product, m, own)
                for product, own in ((ours, weights), (matmul.dense_product, dense))
            ]
            yield (
                f"{layer} M={m} N={n} K={k}",
                {
                    "microseconds": 1e6 * taken[0],
                    "dense_microseconds": 1e6 * taken[1],
                    "speedup": taken[1] / taken[0],
                    "gigabytes_per_second": weight.nbytes / taken[0] / 1e9,
                    "dense_gigabytes_per_second": 2 * n * k / taken[1] / 1e9,
                },
            )
        del weights, dense


def kernels(dry: bool) -> Iterator[Finding]:
    """What CUPTI says of the kernels of a product, without CUDA graphs, which hide them from it."""
    from jax.experimental.mosaic.gpu import profiler

    import jentropy
    from jentropy.bench import matmul

    matmul.MOST_LAYERS = 8
    for layer in () if dry else LAYERS[:5]:
        n, k = matmul.SHAPES[layer]
        weights = matmul.alike(random_weight(n, k), matmul.layer_count(n, k))
        dense = matmul.layers_of(n, k)
        for m in TIMED_ROWS:
            for name, product, own in (
                ("compressed", partial(jentropy.matmul, transpose_w=True), weights),
                ("dense", matmul.dense_product, dense),
            ):
                run = matmul.program(product, m, own)
                _, found = profiler.measure(run, aggregate=False)()
                count, by_name = len(own), dict[str, float]()
                for kernel, milliseconds in found or []:
                    key = kernel[:60]
                    by_name[key] = by_name.get(key, 0) + 1e3 * milliseconds / count
                yield (
                    f"{name} {layer} M={m} N={n} K={k}",
                    {
                        "microseconds": sum(by_name.values()),
                        "kernels": {key: float(f"{t:.4g}") for key, t in by_name.items()},
                    },
                )


def sweep(dry: bool) -> Iterator[Finding]:
    """Every configuration of a few products, and what escapes cost."""
    from jentropy.bench import matmul, tuning

    cases = [(4096, 4096, 16), (28672, 4096, 16), (28672, 4096, 64), (28672, 4096, 256)]
    for n, k, m in [] if dry else cases:
        for escapes in (1.3, 0.0, 4.0):
            weights = matmul.alike(random_weight(n, k, escapes), matmul.layer_count(n, k))
            for config, plan in tuning.plans(m, weights[0]).items():
                yield (
                    f"N={n} K={k} M={m} escapes={escapes}",
                    {
                        "config": str(config),
                        "parts": plan.parts,
                        "microseconds": 1e6 * matmul.seconds(tuning.by(plan), m, weights),
                    },
                )
                if escapes != 1.3:
                    break


def tune(dry: bool) -> Iterator[Finding]:
    """The best configurations, of which OUT gets the file that goes into `pallas_kernels/tuned`."""
    import jax

    from jentropy.bench import tuning
    from jentropy.pallas_kernels.decode_matmul.tuning import path_of

    for result in () if dry else tuning.run():
        yield result.name, dict(result.figures)
        path = path_of(jax.devices()[0].device_kind)
        if path.is_file():
            shutil.copy(path, Path(os.environ["HOPPER_OUT"]) / path.name)


def torch(dry: bool) -> Iterator[Finding]:
    """cuBLAS by way of PyTorch's graphs: whether XLA's dense product is the best there is."""
    if dry:
        return
    import torch

    for n, k in ((28672, 4096), (4096, 4096)):
        count = 3 if n > k else 16
        weights = [torch.randn(n, k, device="cuda", dtype=torch.bfloat16) for _ in range(count)]
        for m in (1, 16, 64, 256):
            x = torch.randn(m, k, device="cuda", dtype=torch.bfloat16)
            torch.nn.functional.linear(x, weights[0])
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                kept = [torch.nn.functional.linear(x, w) for w in weights]
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            graph.replay()
            begin.record()
            for _ in range(10):
                graph.replay()
            end.record()
            torch.cuda.synchronize()
            del kept
            yield f"N={n} K={k} M={m}", {"microseconds": begin.elapsed_time(end) * 100 / count}


# In order of value; the most seconds of each, which what is left of the run caps.
PARTS = {
    environment: 60,
    right: 120,
    ceilings: 25,
    times: 170,
    kernels: 60,
    decoding: 40,
    sweep: 60,
    torch: 25,
    tune: 200,
}


def random_weight(n: int, k: int, escapes: float = 1.3) -> Any:
    """A packed weight of random words: any are valid. Lists hold so many entries on average."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from jentropy import formats
    from jentropy.pallas_kernels import ResidentTensor

    n, k = (-(-size // 128) * 128 for size in (n, k))
    rng = np.random.default_rng(0)
    lists = rng.integers(0, 1 << 29, (n // 64, k // 128, 16), np.uint32)
    lists &= np.uint32(0xFFFF3F80)  # codes of moderate size
    lists[..., 0] = np.minimum(rng.poisson(escapes, lists.shape[:2]), 15)
    return ResidentTensor(
        arrays={
            "words": jax.random.bits(jax.random.key(0), (n // 64, k // 64, 12, 128), jnp.uint32),
            "scale": jnp.full((n,), 2.0**106, jnp.bfloat16),
            "escapes": jnp.asarray(lists),
        },
        layout="gpu_window12",
        number_format=formats.FORMATS["BF16"],
        logical=(n, k),
    )


def _gaussian(n: int, k: int, escapes: int) -> Any:
    """Weights, some of them far from the others."""
    import ml_dtypes
    import numpy as np

    rng = np.random.default_rng(n + k)
    dense = (rng.standard_normal((n, k)) * 0.02).astype(ml_dtypes.bfloat16)
    row, column = rng.integers(0, n, escapes), rng.integers(0, k, escapes)
    far = rng.standard_normal(escapes) * 2.0 ** rng.integers(-60, 40, escapes)
    dense[row, column] = far.astype(ml_dtypes.bfloat16)
    dense[min(3, n - 1)] = 0
    return dense


def _packed(dense: Any) -> Any:
    import jax.numpy as jnp

    from jentropy.pallas_kernels import to_resident

    weight = to_resident(jnp.asarray(dense), "gpu")
    assert getattr(weight, "layout", None) == "gpu_window12", weight
    return weight


def _identity(dry: bool) -> dict[str, Any]:
    """Every weight in its place, and if not, where it came from."""
    import jax.numpy as jnp
    import numpy as np

    import jentropy

    dense = _gaussian(128, 128, 0)
    eye = jnp.eye(128, dtype=jnp.bfloat16)
    y = jentropy.matmul(eye, _packed(dense), True, out_dtype=jnp.float32, interpret=dry)
    found, expected = np.asarray(y).T, dense.astype(np.float32)
    wrong = np.argwhere(found != expected)
    places = {float(v): at for at, v in np.ndenumerate(expected)}
    moved = [(tuple(map(int, at)), places.get(float(found[tuple(at)]))) for at in wrong[:12]]
    return {"wrong": len(wrong), "moved": str(moved)}


def _product(
    dry: bool,
    *,
    m: int,
    n: int,
    k: int,
    config: Any = None,
    escapes: int = 60,
    stack: int | None = None,
    precision: Any = None,
    times: int = 1,
) -> Finding:
    """A product of real weights, several times."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    import jentropy
    from jentropy.bench import tuning
    from jentropy.pallas_kernels.decode_matmul import gpu_plan
    from jentropy.pallas_kernels.gpu_targets import current_target

    dense = np.stack([_gaussian(n, k, escapes)] * (stack or 1))
    weight = _packed(dense if stack else dense[0])
    weight = weight[stack - 1] if stack else weight
    x = np.random.default_rng(2).standard_normal((m, k)).astype(np.float32)
    x = jnp.asarray(x, jnp.float32 if precision else jnp.bfloat16)
    product = partial(
        jentropy.matmul,
        transpose_w=True,
        out_dtype=jnp.float32,
        interpret=dry,
        precision=precision,
    )
    if config is not None:
        lists = weight.arrays["escapes"].shape[-1]
        shape = {"m": m, "k": k, "n": n, "list_words": lists, "target": current_target()}
        product = tuning.by(gpu_plan.plan(**shape, config=config), jnp.float32, interpret=dry)
    product = jax.jit(product)
    found = [np.asarray(product(x, weight)) for _ in range(1 if dry else times)]
    own, other = np.asarray(x, np.float64), dense[-1].astype(np.float64).T
    error = np.abs(found[0] - own @ other) / (np.abs(own) @ np.abs(other) + 1e-30)
    return (
        f"product M={m} N={n} K={k}",
        {
            "options": f"{config} stack={stack} precision={precision} escapes={escapes}",
            "worst": float(error.max()),
            "at": str(tuple(map(int, np.unravel_index(error.argmax(), error.shape)))),
            "differing_runs": sum(a.tobytes() != found[0].tobytes() for a in found),
        },
    )


def _real(dry: bool, m: int, n: int, k: int, stack: int | None = None) -> Finding:
    """A product of a real layer's size, over memory that held NaN, against plain JAX."""
    from dataclasses import replace

    import jax
    import jax.numpy as jnp

    import jentropy

    weight = random_weight(n, k, 0.0)  # an escape of random words would not have a slot of 0
    if stack:
        shifts = jnp.arange(stack, dtype=jnp.uint32)
        arrays = {name: jnp.stack([a] * stack) for name, a in weight.arrays.items()}
        arrays["words"] += shifts[:, None, None, None, None]
        weight = replace(weight, arrays=arrays)[stack - 1]
    x = jax.random.normal(jax.random.key(m), (m, k), jnp.bfloat16)
    dense = jax.jit(lambda w: w.module.decode(w.own(), jnp.bfloat16))(weight)

    @jax.jit
    def reference(x: jax.Array, dense: jax.Array) -> tuple[jax.Array, jax.Array]:
        wide = x.astype(jnp.float32), dense.T.astype(jnp.float32)
        highest = partial(jnp.dot, precision="highest")
        return highest(*wide), highest(*map(jnp.abs, wide))

    expected, scale = reference(x, dense)
    held = [jnp.full((1 << 26,), jnp.nan, jnp.float32) for _ in range(1 if dry else POISONED)]
    jax.block_until_ready(held)
    del held
    product = partial(jentropy.matmul, transpose_w=True, out_dtype=jnp.float32, interpret=dry)
    y = jax.jit(product)(x, weight)
    error = jnp.abs(y - expected) / (scale + 1e-30)
    return (
        f"real M={m} N={n} K={k}",
        {
            "stack": stack,
            "stack_bytes": int(weight.arrays["words"].nbytes),
            "worst": float(jnp.nanmax(error)),
            "nan": int(jnp.isnan(error).sum()),
        },
    )


def _site() -> str:
    """The three top folders as one package, as an installation puts them."""
    site = Path(tempfile.mkdtemp())
    shutil.copytree(ROOT / "jentropy", site / "jentropy")
    for name in ("pallas_kernels", "models"):
        shutil.copytree(ROOT / name, site / "jentropy" / name)
    return str(site)


def _say(out: Path, part: str, what: str, figures: dict[str, Any]) -> None:
    """Writes a finding."""
    short = {k: float(f"{v:.5g}") if isinstance(v, float) else v for k, v in figures.items()}
    seconds = round(time.time() - START, 1)
    line = json.dumps({"seconds": seconds, "part": part, "what": what, **short})
    with (out / "results.jsonl").open("a") as file:
        file.write(line + "\n")
    told = " ".join(f"{k}={v}" for k, v in short.items())
    print(f"[{seconds:5.0f}] {part}: {what}: {told:.300}", flush=True)


def _run_part(name: str, out: Path, dry: bool) -> int:
    """One part, in this process."""
    (part,) = (part for part in PARTS if part.__name__ == name)
    try:
        for what, figures in part(dry):
            _say(out, name, what, figures)
    except Exception as error:
        import traceback

        trace = traceback.format_exc()[-1500:]
        _say(
            out, name, "FAILED", {"error": f"{type(error).__name__}: {error}"[:500]} | {"at": trace}
        )
        return 1
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=540)
    parser.add_argument("--parts", default=",".join(part.__name__ for part in PARTS))
    parser.add_argument("--dry", action="store_true")
    parser.add_argument("--only", help=argparse.SUPPRESS)  # the part of this process
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    if given.only:
        return _run_part(given.only, given.out, given.dry)
    wanted = dict(part.partition(":")[::2] for part in given.parts.split(","))
    environment = {
        **os.environ,
        "HOPPER_START": str(START),
        "HOPPER_OUT": str(given.out.resolve()),
        "PYTHONPATH": os.pathsep.join([_site(), os.environ.get("PYTHONPATH", "")]),
        "PYTHONSAFEPATH": "1",  # the checkout's jentropy lacks two folders
        "XLA_PYTHON_CLIENT_MEM_FRACTION": ".85",
    }
    if given.dry:
        environment |= {"JAX_PLATFORMS": "cpu", "NPROC": "8"}
    for part, usual in PARTS.items():
        left = given.seconds - (time.time() - START)
        most = float(wanted.get(part.__name__) or usual)
        if part.__name__ not in wanted or left < 10:
            continue
        command = [sys.executable, __file__, str(given.out), "--only", part.__name__]
        began, code = time.time(), "out of time"
        with contextlib.suppress(subprocess.TimeoutExpired):
            dry = ["--dry"] if given.dry else []
            flags = {"XLA_FLAGS": NO_GRAPHS} if part is kernels else {}
            done = subprocess.run(
                [*command, *dry], env=environment | flags, timeout=min(most, left), check=False
            )
            code = str(done.returncode)
        _say(given.out, part.__name__, "ended", {"code": code, "took": time.time() - began})
    return 0


if __name__ == "__main__":
    sys.exit(main())
