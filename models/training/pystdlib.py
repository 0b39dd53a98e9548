"""Trains the bundled demo model, a Qwen3 of 2.2M parameters, on Python's standard library.

    python -m jentropy.models.training.pystdlib OUT [--steps N]

needs the extra `train`, runs on two CPU cores in about a quarter of an hour, and writes OUT in
Hugging Face form: BF16 `model.safetensors`, `config.json`, `tokenizer.json`, and the losses in
`training.json`.
"""

from __future__ import annotations

import argparse
import json
import platform
import sysconfig
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from safetensors.flax import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from jentropy.models.architectures.qwen3 import QWEN3
from jentropy.models.decoder import Decoder

END = "<|endoftext|>"
BATCH, CONTEXT = 4, 256  # sequences of a step, tokens of a sequence
PEAK_RATE, WARMUP, DECAY = 4e-3, 100, 0.1  # AdamW with a cosine schedule
HELD_OUT = 0.02  # share of the files that measures the loss
SEED = 0
CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": 1024,
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 5,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 32,
    "hidden_act": "silu",
    "attention_bias": False,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "dtype": "bfloat16",
}


def source_files() -> list[Path]:
    """The standard library's modules, without installed packages, in a fixed order."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = (p for p in root.rglob("*.py") if "site-packages" not in p.parts)
    return sorted(files, key=lambda p: p.relative_to(root).as_posix())


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """A byte-level BPE."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=CONFIG["vocab_size"],
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, texts: list[str]) -> np.ndarray:
    """All texts in one row of token ids, an end token before each. uint16[tokens]."""
    rows = [np.array([0, *e.ids], np.uint16) for e in tokenizer.encode_batch(texts)]
    return np.concatenate(rows)


def next_token_loss(model: Decoder, tokens: jax.Array) -> jax.Array:
    """Mean negative log likelihood, nats per token."""
    logits, expected = model(tokens[:, :-1]), tokens[:, 1:]
    return optax.softmax_cross_entropy_with_integer_labels(logits, expected).mean()


def train(steps: int, data: np.ndarray, held_out: np.ndarray) -> tuple[Decoder, list[dict]]:
    """The trained model and its losses by step."""
    model = Decoder(QWEN3.config(CONFIG), compute_dtype=jnp.float32, rngs=nnx.Rngs(SEED))
    schedule = optax.warmup_cosine_decay_schedule(0.0, PEAK_RATE, WARMUP, steps, PEAK_RATE / 20)
    optimizer = nnx.Optimizer(
        model,
        optax.chain(
            optax.clip_by_global_norm(1.0),
            optax.adamw(
                schedule,
                b2=0.98,
                weight_decay=DECAY,
                mask=lambda params: jax.tree_util.tree_map_with_path(
                    lambda path, _: "norm" not in jax.tree_util.keystr(path), params
                ),
            ),
        ),
        wrt=nnx.Param,
    )

    @nnx.jit(donate_argnums=(0, 1))
    def step(model, optimizer, tokens):
        loss, grads = nnx.value_and_grad(next_token_loss)(model, tokens)
        optimizer.update(model, grads)
        return loss

    evaluate = nnx.jit(next_token_loss)
    rng = np.random.default_rng(SEED)

    def batch(source: np.ndarray, generator: np.random.Generator, size: int) -> np.ndarray:
        starts = generator.integers(0, source.size - CONTEXT - 1, size)
        return np.stack([source[s : s + CONTEXT + 1] for s in starts]).astype(np.int32)

    log, recent, began = [], [], time.perf_counter()
    for i in range(1, steps + 1):
        recent.append(step(model, optimizer, batch(data, rng, BATCH)))
        if i % 100 == 0 or i == steps:
            tests = [batch(held_out, np.random.default_rng(k), BATCH) for k in range(8)]
            entry = {
                "step": i,
                "loss": round(float(np.mean(recent)), 4),
                "held_out_loss": round(float(np.mean([evaluate(model, t) for t in tests])), 4),
                "seconds": round(time.perf_counter() - began, 1),
            }
            print(json.dumps(entry), flush=True)
            log.append(entry)
            recent = []
    return model, log


def save(model: Decoder, tokenizer: Tokenizer, log: list[dict], out: Path) -> None:
    """Writes the checkpoint in Hugging Face form."""
    out.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, jax.Array] = {}
    for path, variable in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        value = variable.get_value().astype(jnp.bfloat16)
        if path[0] == "layers":  # a stack of all of them
            name = ".".join(path[2:])
            tensors |= {f"model.layers.{n}.{name}": layer for n, layer in enumerate(value)}
        else:
            tensors[f"model.{'.'.join(path)}"] = value
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save(str(out / "tokenizer.json"))
    (out / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    run = {
        "data": f"standard library of Python {platform.python_version()}",
        "parameters": sum(t.size for t in tensors.values()),
        "tokens_per_step": BATCH * CONTEXT,
        "losses_nats_per_token": log,
    }
    (out / "training.json").write_text(json.dumps(run, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=2600)
    arguments = parser.parse_args()
    texts = [p.read_text("utf-8", errors="ignore") for p in source_files()]
    tokenizer = train_tokenizer(texts)
    order = np.random.default_rng(SEED).permutation(len(texts))
    cut = round(HELD_OUT * len(texts))
    held_out = encode(tokenizer, [texts[i] for i in order[:cut]])
    data = encode(tokenizer, [texts[i] for i in order[cut:]])
    print(f"{data.size:,} tokens to train on, {held_out.size:,} held out", flush=True)
    model, log = train(arguments.steps, data, held_out)
    save(model, tokenizer, log, arguments.out)


if __name__ == "__main__":
    main()
