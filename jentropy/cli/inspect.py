"""`jentropy inspect`."""

from __future__ import annotations

import argparse
from typing import Any

import jentropy
from jentropy.checkpoints import Inspection

from .console import add_strict, print_notes, print_table, write_json

HELP = "what is in a compressed checkpoint: formats, bits per weight, entropy, the gap between"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="DST", help="a compressed checkpoint")
    parser.add_argument("--json", metavar="F", help="write it as JSON (- for stdout)")
    add_strict(parser)


def run(arguments: argparse.Namespace) -> int:
    inspection = jentropy.inspect(arguments.checkpoint, strict=arguments.strict)
    print_notes(inspection.notes)
    if arguments.json != "-":
        rows = [
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
        ]
        print_table(
            f"{arguments.checkpoint}: {summary(inspection)}",
            ("tensor", "format", "codec", "shape", "stored", "entropy", "joint", "gap"),
            rows,
        )
    if arguments.json:
        write_json(arguments.json, inspection.to_json())
    return 0


def codecs(row: dict[str, Any]) -> str:
    """Codecs of a tensor's parts; one that would not shrink by 1% is stored."""
    parts = row["parts"]
    names = [part["codec"] for part in parts]
    if len(set(names)) == 1:
        return names[0]
    return ", ".join(f"{part['part']} {part['codec']}" for part in parts)


def summary(inspection: Inspection) -> str:
    """Sizes in a line."""
    return (
        f"{inspection.weights:,} weights in {inspection.archive_bytes:,} bytes, "
        f"{inspection.bits_per_weight:.3f} bits per weight on disk "
        f"(joint entropy {inspection.per_tensor_joint_bits:.3f}); "
        f"other files {inspection.other_files_bytes:,} bytes"
    )
