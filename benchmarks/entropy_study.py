"""The entropy study: a model, the same in every format, and others, on one page.

    python benchmarks/entropy_study.py OUT MODEL [OTHER ...]

MODEL is a checkpoint in BF16 that is quantised by rounding to nearest into every format; OTHERs are
analysed as they are. OUT gets `study.html`, `study.json`, `tensors.csv` and figures.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import jentropy
from jentropy import formats, report
from jentropy.entropy import EntropyReport, FormatReport, compare
from jentropy.formats import QuantizedTensor
from jentropy.report.labels import looks_of

HEAD = (
    *("source", "format", "allocated", "entropy", "joint", "used"),
    *("distance", "left", "row", "column"),
)
FORMATS = ("FP8_BLOCK", "MXFP8", "MXFP4", "NVFP4", "INT8", "INT4")


def quantised(source: Path, name: str) -> dict[str, Any]:
    """A model's matrices in a format, and its other weights as they are."""
    checkpoint, tree = jentropy.open_checkpoint(source), {}
    for key in checkpoint.names():
        tensor = checkpoint.tensor(key)
        if len(tensor.shape) != 2 or "embed" in key:
            tree[key] = tensor.values()
            continue
        number_format = formats.FORMATS[name]
        codes = formats.quantize(tensor.dequantize(np.float32), number_format)
        tree[key] = QuantizedTensor(number_format=number_format, codes=codes)
    return tree


def analysed(model: Path, others: list[Path]) -> list[EntropyReport]:
    """Reports of the model, of it in every format, and of the others."""
    made = [jentropy.analyze(model)]
    for name in FORMATS:
        one = jentropy.analyze(quantised(model, name))
        made.append(replace(one, source=f"{model.name} {name}"))
    return [*made, *(jentropy.analyze(other) for other in others)]


def main() -> None:
    """Analyses, prints a table, and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("others", type=Path, nargs="*")
    arguments = parser.parse_args()
    reports = analysed(arguments.model, arguments.others)
    arguments.out.mkdir(parents=True, exist_ok=True)
    report.write_html(reports, arguments.out / "study.html")
    report.write_csv(reports, arguments.out / "tensors.csv")
    report.write_png(reports, arguments.out)
    told = {
        "reports": [one.to_json() for one in reports],
        "comparison": compare(reports).to_json(),
    }
    (arguments.out / "study.json").write_text(json.dumps(told) + "\n")
    print(f"| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}")
    for one, look in zip(reports, looks_of(reports), strict=True):
        for name, row in one.formats.items():
            if name != formats.RAW and row.weights >= one.weights / 100:
                print(f"| {' | '.join(cells(look.label, name, one, row))} |")


def cells(label: str, name: str, one: EntropyReport, row: FormatReport) -> tuple[str, ...]:
    """A row of the table."""
    joint = row.joint_entropy_bits
    saved = (row.contexts.get(context) for context in ("left", "row", "column"))
    return (
        label,
        name,
        f"{row.allocated_bits:.2f}",
        f"{row.entropy_bits:.2f}",
        "" if joint is None else f"{joint:.2f}",
        f"{row.used_fraction:.1%}",
        "" if one.distance is None else f"{one.distance:.4f}",
        *(f"{gain.bits:.4f}" if gain else "" for gain in saved),
    )


if __name__ == "__main__":
    main()
