"""Published models, compressed, verified and given back; for whoever has a network and the disk.

    python scripts/check_hub_models.py FOLDER [hf://owner/name[@revision] ...]

Without models those of MODELS, one for each way of storing weights, 0.1 to 1.5 GB each. A model
whose files are in the hub's cache is not asked for again. Of each it prints the formats, bits per
weight and what could not be recognised; the exit code is 1 if one failed.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from pathlib import Path

import jentropy
from jentropy.errors import JentropyError

MODELS = (
    "hf://HuggingFaceTB/SmolLM2-135M",
    "hf://Qwen/Qwen3-0.6B",
    "hf://Qwen/Qwen3-0.6B-FP8",
    "hf://Qwen/Qwen2.5-0.5B-Instruct-GPTQ-Int4",
    "hf://Qwen/Qwen2.5-0.5B-Instruct-GPTQ-Int8",
    "hf://Qwen/Qwen2.5-0.5B-Instruct-AWQ",
    "hf://mlx-community/Qwen2.5-0.5B-Instruct-4bit",
    "hf://openai-community/gpt2",
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="for what is written; left empty")
    parser.add_argument("models", nargs="*", default=MODELS)
    given = parser.parse_args()
    failed = [model for model in given.models if not check(model, given.folder / "model")]
    print(f"{len(given.models) - len(failed)} of {len(given.models)} came back byte for byte")
    return 1 if failed else 0


def check(model: str, folder: Path) -> bool:
    """Takes one model there and back; whether all went well."""
    packed, out = folder / "packed", folder / "out"
    shutil.rmtree(folder, ignore_errors=True)
    began = time.monotonic()
    try:
        jentropy.compress_checkpoint(model, packed)
        jentropy.verify(packed, model)
        jentropy.decompress_checkpoint(packed, out)
        told = jentropy.inspect(packed)
    except JentropyError as error:
        print(f"{model}: {type(error).__name__}: {error}", flush=True)
        return False
    finally:
        shutil.rmtree(out, ignore_errors=True)
    formats = sorted({row["format"] for row in told.tensors})
    took = time.monotonic() - began
    print(
        f"{model}: {', '.join(formats)}; {told.weights} weights, {told.bits_per_weight:.3f} bits "
        f"each, {took:.0f} s",
        *(f"  {note}" for note in told.notes),
        sep="\n",
        flush=True,
    )
    shutil.rmtree(folder)
    return True


if __name__ == "__main__":
    sys.exit(main())
