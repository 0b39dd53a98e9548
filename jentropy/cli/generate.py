"""`jentropy generate`."""

from __future__ import annotations

import argparse

import jentropy

from .arguments import Arguments
from .console import print_device_note, write_json
from .progress import progress_bar

HELP = "continue a prompt with the model of a checkpoint, from its compressed weights"
ARGUMENTS: Arguments = {
    "checkpoint": {
        "metavar": "DST",
        "help": "a compressed checkpoint or a Hugging Face directory",
    },
    "--prompt": {"required": True, "metavar": "TEXT"},
    "--max-new-tokens": {"type": int, "default": 64, "metavar": "N"},
    "--temperature": {"type": float, "default": 0.0, "metavar": "T", "help": "0 is greedy"},
    "--seed": {"type": int, "default": 0},
    "--compute-dtype": {
        "choices": ("bfloat16", "float32"),
        "help": "of activations; default by format",
    },
    "--dense": {"action": "store_true", "help": "decode all weights when they are loaded"},
    "--json": {"action": "store_true", "help": "print prompt, text and token ids"},
}


def run(arguments: argparse.Namespace) -> int:
    models = jentropy.models
    if not arguments.quiet:
        print_device_note()
    with progress_bar("load", unit=" weights", quiet=arguments.quiet) as advance:
        model = models.load(
            arguments.checkpoint,
            compute_dtype=arguments.compute_dtype,
            dense=arguments.dense,
            progress=advance,
        )
    tokenizer = models.load_tokenizer(arguments.checkpoint)
    ids, text = models.continue_text(
        model,
        tokenizer,
        arguments.prompt,
        max_new_tokens=arguments.max_new_tokens,
        temperature=arguments.temperature,
        seed=arguments.seed,
    )
    if arguments.json:
        write_json("-", {"prompt": arguments.prompt, "text": text, "ids": ids})
    else:
        print(text)
    return 0
