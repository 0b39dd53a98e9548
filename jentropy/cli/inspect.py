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
    print_notes(inspection.notes, quiet=arguments.quiet)
    if arguments.json != "-" and not arguments.quiet:
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
    parts = []
    if inspection.bits_per_weight is not None:
        known = inspection.archive_bytes - inspection.raw_bytes
        parts.append(
            f"{inspection.weights:,} weights in {known:,} bytes, "
            f"{inspection.bits_per_weight:.3f} bits per weight on disk "
            f"(joint entropy {inspection.per_tensor_joint_bits:.3f})"
        )
    else:
        parts.append(f"no weights, {inspection.archive_bytes:,} bytes")
    if inspection.raw_tensors:
        parts.append(
            f"{inspection.raw_tensors:,} RAW tensors (no weights) in {inspection.raw_bytes:,} bytes"
        )
    parts.append(f"other files {inspection.other_files_bytes:,} bytes")
    return "; ".join(parts)
