"""`jentropy quantize`."""

from __future__ import annotations

import argparse
import difflib

import jentropy
from jentropy.checkpoints import exporting
from jentropy.quantization import RECIPES

from .arguments import BASE, OVERWRITE, Arguments, positive
from .console import print_device_note, print_line, print_notes
from .inspect import summary
from .progress import progress_bar

HELP = "quantise the projections of a model by a recipe, into a compressed checkpoint"
BEST = "default"


def recipe(text: str) -> str:
    """The name of a recipe."""
    if text not in RECIPES:
        near = difflib.get_close_matches(text, RECIPES, n=5)
        expected = " or ".join(near) or "a name that `jentropy quantize --help` lists"
        raise argparse.ArgumentTypeError(f"expected {expected}, found {text!r:.40}")
    return text


ARGUMENTS: Arguments = {
    "source": {"metavar": "SRC", "help": "a Hugging Face directory or a compressed checkpoint"},
    "destination": {"metavar": "DST", "help": "must not exist; appears whole or not at all"},
    "--recipe": {
        "type": recipe,
        "default": BEST,
        "metavar": "NAME",
        "help": f"one of {', '.join(RECIPES)}; default: the best that was found",
    },
    "--bits": {
        "type": float,
        "metavar": "B",
        "help": "coded bits of a projection's weight; default: as the recipe says",
    },
    "--calibrate": {
        "metavar": "F",
        "help": "text to calibrate with; default: every second module of Python's standard library",
    },
    "--sequences": {"type": positive, "default": 128, "metavar": "N", "help": "that calibrate"},
    "--length": {"type": positive, "default": 256, "metavar": "N", "help": "tokens of each"},
    "--sums": {
        "metavar": "F",
        "help": "keep the calibration's sums here, and take up those that are there",
    },
    "--as": {
        "dest": "tool",
        "choices": (*exporting.EXPORTS, "gguf"),
        "help": "write a directory that this tool reads, where it has the recipe's format",
    },
    **OVERWRITE,
    **BASE,
}


def run(arguments: argparse.Namespace) -> int:
    """Quantises, and says how far."""
    if not arguments.quiet:
        print_device_note()
    with progress_bar("calibrate", unit=" sequences", quiet=arguments.quiet) as advance:
        bits = jentropy.models.quantizing.quantize_checkpoint(
            arguments.source,
            arguments.destination,
            RECIPES[arguments.recipe],
            bits=arguments.bits,
            text=arguments.calibrate,
            sequences=arguments.sequences,
            length=arguments.length,
            sums=arguments.sums,
            tool=arguments.tool,
            overwrite=arguments.overwrite,
            progress=advance,
            base=arguments.base,
        )
    if not arguments.quiet and not arguments.tool:
        inspection = jentropy.inspect(arguments.destination)
        print_notes(inspection.notes)
        print_line(f"{arguments.destination}: {summary(inspection)}")
    if not arguments.quiet:
        print(f"projections: {bits:.3f} bits a weight")
    return 0
