"""`jentropy inspect`."""

from __future__ import annotations

import argparse
from typing import Any

import jentropy
from jentropy.checkpoints import Inspection

from .arguments import JSON, PACKED, STRICT, Arguments
from .console import print_notes, print_table, write_json

HELP = "what is in a compressed checkpoint: formats, bits per weight, entropy, the gap between"
ARGUMENTS: Arguments = {**PACKED, **JSON, **STRICT}


def run(arguments: argparse.Namespace) -> int:
    """Prints a row for each tensor, and sizes in the title."""
    inspection = jentropy.inspect(arguments.checkpoint, strict=arguments.strict)
    print_notes(inspection.notes, quiet=arguments.quiet)
    if arguments.json != "-" and not arguments.quiet:
        print_table(
            f"{arguments.checkpoint}: {summary(inspection)}",
            ("tensor", "format", "codec", "shape", "stored", "entropy", "joint", "gap"),
            [
                (
                    row["name"],
                    row["format"],
                    codecs(row),
                    " x ".join(map(str, row["shape"])),
                    f"{row['bits_per_weight']:.3f}",
                    f"{row['entropy_bits']:.3f}",
                    "" if row["joint_entropy_bits"] is None else f"{row['joint_entropy_bits']:.3f}",
                    f"{row['gap_bits']:+.3f}",
                )
                for row in inspection.tensors
            ],
        )
    if arguments.json:
        write_json(arguments.json, inspection.to_json())
    return 0


def codecs(row: dict[str, Any]) -> str:
    """Codecs of a tensor's parts; one that would not shrink by 1% is stored."""
    names = {part["codec"] for part in row["parts"]}
    if len(names) == 1:
        return names.pop()
    return ", ".join(f"{part['part']} {part['codec']}" for part in row["parts"])


def summary(inspection: Inspection) -> str:
    """Sizes in a line.

    Args:
      inspection: what `jentropy.inspect` gives.

    Returns:
      Bytes and bits per weight of the weights, bytes of RAW tensors and of other files.
    """
    weights = f"no weights, {inspection.archive_bytes:,} bytes"
    if inspection.bits_per_weight is not None:
        weights = (
            f"{inspection.weights:,} weights in "
            f"{inspection.archive_bytes - inspection.raw_bytes:,} bytes, "
            f"{inspection.bits_per_weight:.3f} bits per weight on disk "
            f"(joint entropy {inspection.per_tensor_joint_bits:.3f})"
        )
    raw = f"{inspection.raw_tensors:,} RAW tensors (no weights) in {inspection.raw_bytes:,} bytes"
    others = f"other files {inspection.other_files_bytes:,} bytes"
    return "; ".join([weights, *([raw] if inspection.raw_tensors else []), others])
