"""Products over a mesh through the real TPU compiler, for four chips that are not there.

The compiler reads its environment once: it runs in a process of its own, which is this file.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import jentropy
from jentropy import jax_internals
from jentropy.pallas_kernels import ShardedTensor, abstract_weight
from jentropy.pallas_kernels.profiling import compiling
from jentropy.pallas_kernels.variants import VARIANTS

from .compilers import EVERYTHING, needs, outputs

TARGET, CHIPS, LAYERS, WIDTH, INNER = "v5e", 4, 3, 1024, 2048
NAMES = ["BF16", "FP8 128x128", "INT4 g128", "INT8 row", "MXFP8"][: None if EVERYTHING else 3]


def over(mesh: Mesh, name: str, shape: tuple[int, int], split: int, gathered: bool) -> Any:
    """A stack of weights without data, of which every chip has a part."""
    own = list(shape)
    own[split] //= CHIPS
    abstract = abstract_weight(VARIANTS[name].number_format, (LAYERS, *own))
    part = jentropy.to_resident(abstract, "tpu")
    assert part.backend == "tpu"
    place = NamedSharding(mesh, PartitionSpec(None, "model"))
    arrays = {
        key: jax.ShapeDtypeStruct((LAYERS, CHIPS, *a.shape[1:]), a.dtype, sharding=place)
        for key, a in part.arrays.items()
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


def main() -> None:
    """Compiles a loop over layers for every format, o and down split both ways."""
    compiling.prepare(TARGET)
    topology = compiling.COMPILERS[TARGET].topology
    mesh = jax_internals.described_mesh((CHIPS,), ("model",), **topology)
    everywhere = NamedSharding(mesh, PartitionSpec())
    x = jax.ShapeDtypeStruct((8, WIDTH), jnp.bfloat16, sharding=everywhere)
    results = {}
    for name in NAMES:
        up = over(mesh, name, (INNER, WIDTH), -2, gathered=False)
        for split in (-1, -2):
            down = over(mesh, name, (WIDTH, INNER), split, gathered=True)
            program = jax.jit(layers).lower(x, up, down).compile()
            text = program.as_text()
            results[f"{name} {split}"] = {
                "kernels": text.count('custom_call_target="tpu_custom_call"'),
                "gathers": text.count("all-gather(") + text.count("all-gather-start("),
                "sums": text.count("all-reduce(") + text.count("all-reduce-start("),
                "argument_bytes": program.memory_analysis().argument_size_in_bytes,
                "weight_bytes": up.nbytes + down.nbytes,
            }
    print(json.dumps(results))


@needs(TARGET)
def test_every_chip_multiplies_by_its_part():
    (results,) = outputs(("-m", __name__))
    assert set(results) == {f"{name} {split}" for name in NAMES for split in (-1, -2)}
    for case, found in results.items():
        assert found["kernels"] == 2, case
        assert found["sums"] == (1 if case.endswith("-1") else 0), case
        assert found["gathers"] == (0 if case.endswith("-1") else 2), case
        part = found["weight_bytes"] / CHIPS
        assert part <= found["argument_bytes"] < 1.02 * part + (1 << 18), case


if __name__ == "__main__":
    main()
