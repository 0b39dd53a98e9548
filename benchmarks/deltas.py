"""What deltas save: two steps of a training, a fine-tune and a merge of low rank.

The bundled model is trained on for some steps on the standard library, in float32 with AdamW; then
its state is saved at a step and at the next, and its weights in BF16 against those it began with.

    python benchmarks/deltas.py [--steps 40] [--rank 8]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from safetensors.flax import load_file

import jentropy
from jentropy.checkpoints.store import Store
from jentropy.models.architectures.qwen3 import QWEN3
from jentropy.models.decoder import Decoder
from jentropy.models.training import pystdlib

RATE = 3e-4


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rank", type=int, default=8)
    given = parser.parse_args()
    first, states = train(given.steps)
    params = [state["params"] for state in states]
    before, after = bf16(first), bf16(params[-1])
    low = {name: merged(first[name], params[-1][name] - first[name], given.rank) for name in first}
    told("a step after another, params and moments in FP32", states[-1], states[-2])
    told("a step after another, weights in BF16", after, bf16(params[-2]))
    told(f"{given.steps} steps, weights in BF16", after, before)
    told(f"a merge of rank {given.rank}, weights in BF16", bf16(low), before)


def train(steps: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Parameters at the beginning, and states after the last two steps."""
    model = Decoder(
        QWEN3.config(pystdlib.CONFIG), compute_dtype=jnp.float32, rngs=nnx.Rngs(pystdlib.SEED)
    )
    stored = load_file(jentropy.models.BUNDLED / "model.safetensors")
    for path, variable in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        name = ".".join(path[2:] if path[0] == "layers" else path)
        if path[0] == "layers":
            count = pystdlib.CONFIG["num_hidden_layers"]
            value = jnp.stack([stored[f"model.layers.{n}.{name}"] for n in range(count)])
        else:
            value = stored[f"model.{name}"]
        variable.set_value(value.astype(jnp.float32))
    optimizer = nnx.Optimizer(model, optax.adamw(RATE, b2=0.98), wrt=nnx.Param)
    tokenizer = jentropy.models.load_tokenizer(jentropy.models.BUNDLED)
    texts = [path.read_text(errors="ignore") for path in pystdlib.source_files()[:60]]
    data, rng = pystdlib.encode(tokenizer, texts), np.random.default_rng(0)

    @nnx.jit
    def step(model: Decoder, optimizer: nnx.Optimizer, tokens: jax.Array) -> jax.Array:
        loss, grads = nnx.value_and_grad(pystdlib.next_token_loss)(model, tokens)
        optimizer.update(model, grads)
        return loss

    def state() -> dict[str, Any]:
        def named(of: Any, kind: Any) -> dict[str, np.ndarray]:
            flat = nnx.to_flat_state(nnx.state(of, kind))
            return {".".join(map(str, path)): np.array(v.get_value()) for path, v in flat}

        return {"params": named(model, nnx.Param), "optimizer": named(optimizer, nnx.OptState)}

    first, states = state()["params"], []
    for n in range(steps):
        starts = rng.integers(0, data.size - pystdlib.CONTEXT - 1, pystdlib.BATCH)
        tokens = np.stack([data[s : s + pystdlib.CONTEXT + 1] for s in starts]).astype(np.int32)
        step(model, optimizer, tokens)
        states += [state()] if n >= steps - 2 else []
    return first, states


def bf16(params: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same in BF16."""
    return {name: value.astype(jnp.bfloat16) for name, value in params.items()}


def merged(weight: np.ndarray, change: np.ndarray, rank: int) -> np.ndarray:
    """A weight with the part of a low rank of a change, as a merge of LoRA leaves it."""
    if min(change.shape[-2:], default=0) <= rank or change.ndim < 2:
        return weight
    left, scales, right = np.linalg.svd(change, full_matrices=False)
    return weight + (left[..., :rank] * scales[..., None, :rank]) @ right[..., :rank, :]


def told(what: str, tree: Any, base: Any) -> None:
    """Prints what a tree takes alone and with a base."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        jentropy.save(folder / "base", base)
        jentropy.save(folder / "alone", tree)
        jentropy.save(folder / "delta", tree, base=folder / "base")
        back = jentropy.decompress(jentropy.load(folder / "delta", base=folder / "base"))
        assert jax.tree.all(jax.tree.map(lambda a, b: a.tobytes() == b.tobytes(), tree, back))
        entries = Store(folder / "delta").index.tensors
        forms = dict.fromkeys(("", *jentropy.codecs.FORMS), 0)
        for entry in entries:
            forms[entry.header.delta] += 1
        raw = sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
        numbers = sum(leaf.size for leaf in jax.tree.leaves(tree))
        sizes = [bytes_of(folder / part) for part in ("alone", "delta")]
        bits = [8 * size / numbers for size in (raw, *sizes)]
        print(f"{what}: {bits[0]:.2f} raw, {bits[1]:.2f} alone, {bits[2]:.2f} as a delta; {forms}")


def bytes_of(folder: Path) -> int:
    """Of all files."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


if __name__ == "__main__":
    main()
