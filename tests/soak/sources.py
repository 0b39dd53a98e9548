"""What trials of commands work on, made in a folder, and when two results of them are the same."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np

from .measuring import write_safetensors

TOLD = ("_CHECKPOINT_METADATA", "commit_success.txt")  # Orbax writes times and paths into them
WIDTH = 64  # of the model


def files(folder: Path, seed: int = 0) -> Path:
    """A source of files: tensors of several codecs and chunks, a config, a blob."""
    source = folder / "source"
    rng = np.random.default_rng(seed)
    shapes = {"a": [700, 1500], "b": [40, 300], "c": [1 << 20], "d": [3000, 500]}
    kinds = {"a": "BF16", "b": "BF16", "c": "U8", "d": "BF16"}

    def fill(number: int, size: int):
        noise = rng.standard_normal(size // 2).astype(ml_dtypes.bfloat16)
        yield (rng.integers(0, 256, size, np.uint8) if number == 2 else noise).tobytes()

    for part in range(2):
        tensors = {f"{n}{part}": (kinds[n], shape) for n, shape in shapes.items()}
        write_safetensors(source / f"model-{part}.safetensors", tensors, fill)
    (source / "config.json").write_text("{}")
    (source / "tokenizer.bin").write_bytes(rng.integers(0, 9, 1 << 20, np.uint8).tobytes())
    return source


def noise(folder: Path, seed: int = 0) -> Path:
    """A source whose tensors are stored as they are: nothing of JAX runs."""
    source = folder / "source"
    rng = np.random.default_rng(seed)
    tensors = {f"t{n}": ("U8", [10_000]) for n in range(60)}
    write_safetensors(source / "model.safetensors", tensors, lambda _, size: [rng.bytes(size)])
    (source / "config.json").write_text("{}")
    return source


def tree() -> dict[str, np.ndarray]:
    """A pytree of coded weights."""
    rng = np.random.default_rng(0)
    return {f"w{n}": rng.standard_normal((400, 1000)).astype(ml_dtypes.bfloat16) for n in range(5)}


def steps(folder: Path) -> Path:
    """A source that Orbax writes."""
    from orbax.checkpoint import v1

    v1.save(folder / "source", tree())
    return folder / "source"


def tuned(folder: Path) -> Path:
    """A source of files, and at `base` a compressed one of which every weight is near."""
    import jentropy

    rng = np.random.default_rng(0)
    weights = [rng.standard_normal(600_000).astype(ml_dtypes.bfloat16) for _ in range(4)]
    tensors = {f"w{n}": ("BF16", [600, 1000]) for n in range(4)}
    for name in ("untuned", "source"):
        file = folder / name / "model.safetensors"
        write_safetensors(file, tensors, lambda number, _: [weights[number].tobytes()])
        for weight in weights:
            weight.view(np.uint16)[:] += rng.integers(0, 2, 600_000, np.uint16)
    jentropy.compress_checkpoint(folder / "untuned", folder / "base")
    return folder / "source"


def model(folder: Path) -> Path:
    """A small Llama."""
    source = folder / "source"
    rng = np.random.default_rng(0)
    told = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 128}
    told |= {"hidden_size": WIDTH, "intermediate_size": WIDTH, "num_hidden_layers": 2}
    told |= {"num_attention_heads": 2, "num_key_value_heads": 2, "torch_dtype": "bfloat16"}
    matrices = [f"self_attn.{one}_proj" for one in "qkvo"]
    matrices += [f"mlp.{one}_proj" for one in ("gate", "up", "down")]
    shapes = {"model.embed_tokens": [128, WIDTH], "lm_head": [128, WIDTH], "model.norm": [WIDTH]}
    for layer in (f"model.layers.{number}" for number in range(2)):
        shapes |= {f"{layer}.{name}": [WIDTH, WIDTH] for name in matrices}
        norms = ("input_layernorm", "post_attention_layernorm")
        shapes |= {f"{layer}.{name}": [WIDTH] for name in norms}
    write_safetensors(
        source / "model.safetensors",
        {f"{name}.weight": ("BF16", shape) for name, shape in shapes.items()},
        lambda _, size: [rng.standard_normal(size // 2).astype(ml_dtypes.bfloat16).tobytes()],
    )
    (source / "config.json").write_text(json.dumps(told))
    return source


def alike(ours: Path, wanted: Path) -> bool:
    """Whether two folders have the same files, but for what Orbax tells of times."""
    names = {p.relative_to(wanted).as_posix() for p in wanted.rglob("*") if p.is_file()}
    here = {p.relative_to(ours).as_posix() for p in ours.rglob("*") if p.is_file()}
    return names == here and all(
        name in TOLD or (ours / name).read_bytes() == (wanted / name).read_bytes() for name in names
    )


def same_arrays(ours: Path, wanted: Path) -> bool:
    """Whether Orbax finds the same arrays: OCDBT names its files at random."""
    from orbax.checkpoint import v1

    a, b = v1.load(ours), v1.load(wanted)
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)
