"""What every architecture takes at about 100M parameters, from dense and from compressed weights.

    python benchmarks/architectures.py OUT [NAME ...] [--new 32] [--layers 12]

Configs are those of the tests' tiny models with larger sizes, weights are random from a seed. Each
model is loaded in a process of its own, twice over: its seconds to load, to compile and per token
(batch 1, behind a prompt of 16), the bytes of its weights, and what the process had in memory at
the most. OUT is given `architectures.json` and `architectures.md`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TINY = ROOT / "tests" / "fixtures" / "models"
NAMES = sorted(
    {file.parent.name for file in TINY.glob("*/config.json")}
    - {"llama_linear", "llama_dynamic", "phi3_longrope"}  # which differ from others in a rope
)
SIZES = {
    "vocab_size": 16384,
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "max_position_embeddings": 4096,
    "moe_intermediate_size": 256,
    "num_local_experts": 8,
    "num_experts": 8,
    "n_routed_experts": 12,
    "q_lora_rank": 256,
    "kv_lora_rank": 128,
    "qk_nope_head_dim": 64,
    "qk_rope_head_dim": 32,
    "v_head_dim": 64,
    "sliding_window": 128,
}
EXPERTS = ("mixtral", "gpt_oss")  # whose `intermediate_size` is that of an expert
PROMPT = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("names", nargs="*", default=NAMES)
    parser.add_argument("--new", type=int, default=32)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        print(json.dumps(measured(options.run, options.new)))
        return
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "architectures.json"
    results = json.loads(file.read_text())["models"] if file.is_file() else {}
    for name in options.names or NAMES:
        results[name] = one(name, options.layers, options.new)
        print(name, json.dumps(results[name]), flush=True)
        file.write_text(json.dumps({**machine(), "models": results}, indent=1) + "\n")
        (options.out / "architectures.md").write_text(table(results))


def one(name: str, layers: int, new: int) -> dict[str, Any]:
    """Figures of one architecture, of weights that lie in a folder for as long."""
    with tempfile.TemporaryDirectory() as folder:
        dense, packed = Path(folder, "dense"), Path(folder, "packed")
        parameters = write(name, dense, layers)
        subprocess.run([sys.executable, "-m", "jentropy", "compress", dense, packed], check=True)
        command = [sys.executable, __file__, folder, "--new", str(new), "--run"]
        found = {"parameters": parameters}
        for path in (dense, packed):
            out = subprocess.run([*command, path], check=True, stdout=subprocess.PIPE, text=True)
            found[path.name] = json.loads(out.stdout.splitlines()[-1])
        shutil.rmtree(dense)
    return found


def larger(config: dict[str, Any], name: str, layers: int) -> dict[str, Any]:
    """A tiny model's config with larger sizes."""
    if "text_config" in config:
        return {**config, "text_config": larger(config["text_config"], name, layers)}
    sizes = {key: value for key, value in SIZES.items() if config.get(key) is not None}
    made = {**config, **sizes, "num_hidden_layers": layers}
    if "deepseek" in name:
        made |= {"num_key_value_heads": made["num_attention_heads"]}
        made |= {"head_dim": made["qk_rope_head_dim"]}
        made |= {"qk_head_dim": made["qk_nope_head_dim"] + made["qk_rope_head_dim"]}
    if name in EXPERTS:
        made |= {"intermediate_size": SIZES["moe_intermediate_size"]}
    if kinds := made.get("layer_types"):
        made["layer_types"] = (kinds * layers)[:layers]
    return made


def write(name: str, folder: Path, layers: int) -> int:
    """A checkpoint of random weights; returns how many there are."""
    import jax
    import ml_dtypes
    import numpy as np
    from flax import nnx
    from safetensors.numpy import save_file

    from jentropy.models import ARCHITECTURES, Decoder

    config = larger(json.loads((TINY / name / "config.json").read_text()), name, layers)
    made = ARCHITECTURES[config["architectures"][0]].config(config)
    model = nnx.eval_shape(lambda: Decoder(made, rngs=nnx.Rngs(0)))
    random, arrays = np.random.default_rng(0), {}
    for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        shape = leaf.get_value().shape
        if path[0] == "layers":
            places = [(n, shape[1:]) for n in model.members[path[1]]]
            named = {".".join(("layers", str(n), *path[2:])): of for n, of in places}
        else:
            named = {".".join(map(str, path)): shape}
        for address, of in named.items():
            values = random.standard_normal(of, np.float32) / math.sqrt(of[-1])
            values *= np.exp(0.3 * random.standard_normal((*of[:-1], 1), np.float32))
            prefix = "" if address.startswith("lm_head") else "model."
            arrays[prefix + address] = values.astype(ml_dtypes.bfloat16)
    jax.clear_caches()
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file(arrays, folder / "model.safetensors")
    return sum(array.size for array in arrays.values())


def measured(path: Path, new: int) -> dict[str, float]:
    """Figures of a checkpoint, in this process."""
    import jax
    import numpy as np
    from flax import nnx

    from jentropy import models

    began = time.perf_counter()
    model = models.load(path)
    jax.block_until_ready(nnx.state(model))
    loaded = time.perf_counter() - began
    ids = np.arange(PROMPT)[None] % model.config.vocab_size

    def seconds() -> float:
        began = time.perf_counter()
        jax.block_until_ready(models.generate(model, ids, max_new_tokens=new))
        return time.perf_counter() - began

    first, later = seconds(), sorted(seconds() for _ in range(3))[1]
    return {
        "load_s": round(loaded, 2),
        "compile_s": round(first - later, 2),
        "tokens_per_s": round(new / later, 2),
        "weight_mb": round(sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.state(model))) / 1e6, 1),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3),
    }


def machine() -> dict[str, Any]:
    import jax

    return {"jax": jax.__version__, "python": platform.python_version(), "cores": os.cpu_count()}


def table(results: dict[str, Any]) -> str:
    """Rows of Markdown: dense and compressed."""
    columns = {
        "load_s": "load, s",
        "compile_s": "compile, s",
        "tokens_per_s": "tokens/s",
        "weight_mb": "weights, MB",
        "peak_mb": "peak, MB",
    }
    lines = ["| | parameters, M | " + " | ".join(columns.values()) + " |"]
    lines.append("|---" * (len(columns) + 2) + "|")
    for name, found in sorted(results.items()):
        cells = (f"{found['dense'][key]} / {found['packed'][key]}" for key in columns)
        lines.append(f"| {name} | {found['parameters'] / 1e6:.0f} | " + " | ".join(cells) + " |")
    return "Dense / compressed.\n\n" + "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
