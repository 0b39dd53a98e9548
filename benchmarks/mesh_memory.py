"""Memory of processes that load a model over a mesh, each its part, from a compressed checkpoint.

    python benchmarks/mesh_memory.py FOLDER [--gib 4] [--processes 4]

FOLDER is given a checkpoint of random BF16 weights and the compressed one, unless it has them. A
process may have in memory, beside its device buffers, one part of the weights and 256 MiB.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

MORE_BYTES = 256 << 20
WIDTH, INNER, VOCABULARY, HEADS = 2048, 8192, 32000, 16
PER_LAYER = WIDTH * (2 * WIDTH + 2 * WIDTH // 4 + 3 * INNER)
POOL = 1 << 25  # random numbers, of which every weight takes some in a row


def make(folder: Path, gib: float) -> Path:
    """A compressed checkpoint of so many GiB of BF16 weights."""
    import ml_dtypes
    import numpy as np
    from safetensors.numpy import save_file

    import jentropy

    source, target = folder / f"source-{gib:g}", folder / f"compressed-{gib:g}"
    if target.exists():
        return target
    layers = round((gib * 2**29 - 2 * VOCABULARY * WIDTH) / PER_LAYER + 0.5)
    pool = np.random.default_rng(0).standard_normal(POOL, np.float32) * 0.02
    pool, offset = pool.astype(ml_dtypes.bfloat16), 0
    shapes = {f"model.{name}.weight": (VOCABULARY, WIDTH) for name in ["embed_tokens"]}
    shapes |= {"lm_head.weight": (VOCABULARY, WIDTH), "model.norm.weight": (WIDTH,)}
    for layer in range(layers):
        for name, shape in {
            "input_layernorm": (WIDTH,),
            "post_attention_layernorm": (WIDTH,),
            "self_attn.q_proj": (WIDTH, WIDTH),
            "self_attn.k_proj": (WIDTH // 4, WIDTH),
            "self_attn.v_proj": (WIDTH // 4, WIDTH),
            "self_attn.o_proj": (WIDTH, WIDTH),
            "mlp.gate_proj": (INNER, WIDTH),
            "mlp.up_proj": (INNER, WIDTH),
            "mlp.down_proj": (WIDTH, INNER),
        }.items():
            shapes[f"model.layers.{layer}.{name}.weight"] = shape
    source.mkdir(parents=True, exist_ok=True)
    names, shard, held, files = {}, {}, 0, 0
    for name, shape in shapes.items():
        size, offset = int(np.prod(shape)), (offset + 7919) % POOL
        weights = np.resize(np.roll(pool, -offset) if offset + size > POOL else pool[offset:], size)
        shard[name], held = weights.reshape(shape), held + 2 * size
        if held > 1 << 30 or name == list(shapes)[-1]:
            file = f"model-{files:05d}.safetensors"
            save_file(shard, source / file)
            names |= dict.fromkeys(shard, file)
            shard, held, files = {}, 0, files + 1
    index = {"metadata": {}, "weight_map": names}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS // 4,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e4,
        "tie_word_embeddings": False,
        "max_position_embeddings": 2048,
    }
    (source / "config.json").write_text(json.dumps(config))
    jentropy.compress_checkpoint(source, target)
    return target


def status(name: str) -> int:
    """Bytes of this process, as Linux counts them."""
    text = Path("/proc/self/status").read_text()
    return 1024 * int(text.split(f"{name}:")[1].split()[0])


def measure(path: str, address: str, processes: int, number: int) -> None:
    """Loads in one process of several, and prints what it holds."""
    import jax

    if processes > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(address, processes, number)
    import numpy as np

    from jentropy import models

    mesh = jax.make_mesh((processes,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
    before, start = status("VmRSS"), time.perf_counter()
    model = models.load(path, mesh=mesh)
    seconds = time.perf_counter() - start
    buffers = sum(
        shard.data.nbytes
        for array in jax.live_arrays()
        for shard in array.addressable_shards
        if not array.is_deleted()
    )
    resident, peak = status("VmRSS"), status("VmHWM")
    of_files = status("RssFile")
    logits = np.asarray(model(np.arange(8)[None]))
    print(
        json.dumps(
            {
                "process": number,
                "seconds": round(seconds, 1),
                "before_load": before,
                "device_buffers": buffers,
                "resident": resident,
                "resident_less_buffers": resident - buffers,
                "of_files": of_files,
                "peak": peak,
                "logits": float(np.abs(logits).sum()),
            }
        ),
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gib", type=float, default=4.0)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--process", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.process:
        address, number = given.process
        measure(str(given.folder), address, given.processes, int(number))
        return
    path = make(given.folder, given.gib)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, __file__, str(path), "--processes", str(given.processes)]
    running = [
        subprocess.Popen(
            [*command, "--process", address, str(i)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
        )
        for i in range(given.processes)
    ]
    found = [process.communicate()[0].splitlines()[-1:] for process in running]
    results = [json.loads(line) for lines in found for line in lines if line.startswith("{")]
    assert len(results) == given.processes, found
    part = given.gib * 2**30 / given.processes
    for result in results:
        print(json.dumps(result | {"allowed": int(part) + MORE_BYTES}))
        assert result["resident_less_buffers"] <= part + MORE_BYTES, result


if __name__ == "__main__":
    main()
