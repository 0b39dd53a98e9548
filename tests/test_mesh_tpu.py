"""Products over a mesh through the real TPU compiler, for four chips that are not there.

The compiler reads its environment once: it runs in a process of its own, which is this file.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import jentropy
from jentropy import jax_internals, modes
from jentropy.models.attending import attend
from jentropy.models.experts import Matrices, mixed
from jentropy.models.placing import Lies
from jentropy.pallas_kernels import ShardedTensor, abstract_weight, fused
from jentropy.pallas_kernels.profiling import compiling
from jentropy.pallas_kernels.targets import taken_for
from jentropy.pallas_kernels.variants import VARIANTS

from .compilers import EVERYTHING, needs, outputs

CHIPS, LAYERS, WIDTH, INNER = 4, 3, 1024, 2048
NAMES = ["BF16", "FP8 128x128", "INT4 g128", "MXFP4", "NVFP4"]
NAMES += ["INT8 row", "MXFP8"] if EVERYTHING else []
TARGETS = ["v5e", "v6e"] if EVERYTHING else ["v5e"]
EXPERTS, CHOSEN, THIN = 16, 3, 416  # the latter no multiple of a tile
GROUPED = NAMES if EVERYTHING else ["FP8 128x128", "MXFP4", "NVFP4"]


def over(mesh: Mesh, name: str, shape: tuple[int, ...], split: int, gathered: bool = True) -> Any:
    """A stack of weights without data, of which every chip has a part."""
    own = list(shape)
    own[split] //= CHIPS
    abstract = abstract_weight(VARIANTS[name].number_format, (LAYERS, *own))
    part = jentropy.to_resident(abstract, "tpu")
    assert part.backend == "tpu"
    lead = len(part.stack)
    place = NamedSharding(mesh, PartitionSpec(*(None,) * lead, "model"))
    arrays = {
        key: jax.ShapeDtypeStruct(
            (*a.shape[:lead], CHIPS, *a.shape[lead:]), a.dtype, sharding=place
        )
        for key, a in fused.as_read(part).arrays.items()
    }
    return ShardedTensor(
        parts=replace(part, arrays=arrays),
        mesh=mesh,
        axes=("model",),
        split=split,
        logical=shape,
        gathered=gathered,
    )


def layers(x: jax.Array, up: Any, down: Any) -> jax.Array:
    def layer(x: jax.Array, at: jax.Array) -> tuple[jax.Array, None]:
        options = {"transpose_w": True, "precision": "highest"}
        inner = jax.nn.silu(jentropy.matmul(x, up.layer(at), **options))
        return x + jentropy.matmul(inner, down.layer(at), **options), None

    return jax.lax.scan(layer, x, jnp.arange(LAYERS))[0]


@modes.standard
def experts(x: jax.Array, scores: jax.Array, chosen: jax.Array, *parts: Any) -> jax.Array:
    def layer(x: jax.Array, at: jax.Array) -> tuple[jax.Array, None]:
        matrices = (Matrices(part.layer(at)) for part in parts)
        made = mixed(x, scores, chosen, *matrices, gated=lambda gate, up: jax.nn.silu(gate) * up)
        return x + made.astype(x.dtype), None

    return jax.lax.scan(layer, x, jnp.arange(LAYERS))[0]


def attention(mesh: Mesh) -> tuple[Any, list[jax.ShapeDtypeStruct]]:
    """A chunk of Llama-3.1-8B's queries over a cache, split by heads, and its arrays."""
    by_heads = NamedSharding(mesh, PartitionSpec(None, "model"))
    arrays = [
        jax.ShapeDtypeStruct((1, heads, length, 128), jnp.bfloat16, sharding=by_heads)
        for heads, length in ((32, 512), (8, 4096), (8, 4096))
    ]
    lies = Lies(mesh, (), ("model",))

    @modes.standard
    def run(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        order = jnp.arange(4096)
        told = {"positions": order[:512], "slots": order, "in_order": True, "lies": lies}
        return attend(q, k, v, scale=0.1, **told)

    return run, arrays


def counted(function: Any, *arguments: Any) -> dict[str, int]:
    """What a chip's program has."""
    program = jax.jit(function).lower(*arguments).compile()
    text = program.as_text()
    weights = [a for a in arguments if isinstance(a, ShardedTensor)]
    return {
        "kernels": text.count('custom_call_target="tpu_custom_call"'),
        "gathers": text.count("all-gather(") + text.count("all-gather-start("),
        "sums": text.count("all-reduce(") + text.count("all-reduce-start("),
        "argument_bytes": program.memory_analysis().argument_size_in_bytes,
        "weight_bytes": sum(w.nbytes for w in weights),
    }


def main(target: str) -> None:
    """Compiles a loop over layers for every format, o and down split both ways; then experts."""
    compiling.prepare(target)
    topology = compiling.COMPILERS[target].topology
    mesh = jax_internals.described_mesh((CHIPS,), ("model",), **topology)
    everywhere = NamedSharding(mesh, PartitionSpec())

    def whole(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=everywhere)

    x, results = whole((8, WIDTH), jnp.bfloat16), {}
    with taken_for(target):
        for name in NAMES:
            up = over(mesh, name, (INNER, WIDTH), -2, gathered=False)
            for split in (-1, -2):
                down = over(mesh, name, (WIDTH, INNER), split)
                results[f"{name} {split}"] = counted(layers, x, up, down)
        run, arrays = attention(mesh)
        results["attention"] = counted(run, *arrays)
        tokens = x, whole((8, CHOSEN), jnp.float32), whole((8, CHOSEN), jnp.int32)
        for name in GROUPED:
            for split in (-3, -2):
                shapes = (EXPERTS, THIN, WIDTH), (EXPERTS, THIN, WIDTH), (EXPERTS, WIDTH, THIN)
                parts = (over(mesh, name, shape, split) for shape in shapes)
                results[f"experts {name} {split}"] = counted(experts, *tokens, *parts)
    print(json.dumps(results))


@pytest.fixture(scope="module", params=[pytest.param(t, marks=needs(t)) for t in TARGETS])
def results(request: pytest.FixtureRequest) -> dict[str, dict[str, int]]:
    """What programs have, by what they multiply by."""
    return outputs(("-m", __name__, request.param))[0]


def test_every_chip_multiplies_by_its_part(results):
    cases = [f"{name} {split}" for name in NAMES for split in (-1, -2)]
    assert set(cases) < set(results)
    for case in cases:
        found = results[case]
        assert found["kernels"] == 2, case
        assert found["sums"] == (1 if case.endswith("-1") else 0), case
        assert found["gathers"] == (0 if case.endswith("-1") else 2), case
        part = found["weight_bytes"] / CHIPS
        assert part <= found["argument_bytes"] < 1.02 * part + (1 << 18), case


def test_every_chip_attends_to_its_heads_by_a_kernel(results):
    found = results["attention"]
    assert (found["kernels"], found["sums"], found["gathers"]) == (1, 0, 0)
    assert found["argument_bytes"] < 1.02 * (32 * 512 + 16 * 4096) * 128 * 2 / CHIPS


def test_experts_of_a_layer_are_added_once(results):
    for name in GROUPED:
        for split, sums, gathers in ((-3, 1, 0), (-2, 0, 3)):
            found = results[f"experts {name} {split}"]
            assert (found["kernels"], found["sums"], found["gathers"]) == (3, sums, gathers), name
            part = found["weight_bytes"] / CHIPS
            assert part <= found["argument_bytes"] < 1.02 * part + (1 << 18), name


if __name__ == "__main__":
    main(*sys.argv[1:])
