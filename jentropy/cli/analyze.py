"""`jentropy analyze`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import jentropy
from jentropy.entropy import EntropyReport, compare, counted

from .arguments import BASE, JSON, STEP, STRICT, Arguments
from .console import print_notes, print_table, write_json
from .progress import progress_bar

HELP = "entropy per field of a checkpoint's formats, against the bits that they are allocated"
ARGUMENTS: Arguments = {
    "sources": {
        "metavar": "SRC",
        "nargs": "+",
        "help": "safetensors or GGUF file, Hugging Face directory, Orbax or compressed checkpoint, "
        "or hf://; several are compared",
    },
    "--html": {"metavar": "F", "help": "write the report as a page"},
    "--png": {"metavar": "DIR", "help": "write the figures"},
    "--csv": {"metavar": "F", "help": "write a row for each tensor"},
    "--no-contexts": {
        "action": "store_true",
        "help": "leave out what neighbours, rows, columns and siblings tell of weights (faster)",
    },
    **JSON,
    **STRICT,
    **STEP,
    **BASE,
}


def run(arguments: argparse.Namespace) -> int:
    """Analyses every source, then prints and writes."""
    if arguments.png:
        jentropy.report.figures.new_figure(1, 1)  # where Matplotlib is missing, it is said at once
    reports = []
    for source in arguments.sources:
        with progress_bar(f"analyze {source}", unit="B", quiet=arguments.quiet) as advance:
            report = jentropy.analyze(
                source,
                progress=advance,
                step=arguments.step,
                strict=arguments.strict,
                contexts=not arguments.no_contexts,
                base=arguments.base,
            )
        reports.append(report)
        print_notes(report.notes, quiet=arguments.quiet)
    if arguments.json != "-" and not arguments.quiet:
        for report in reports:
            print_report(report)
    if arguments.json:
        content = [report.to_json() for report in reports]
        compared = {"comparison": compare(reports).to_json()}
        many = {"reports": content, **compared}
        write_json(arguments.json, content[0] if len(content) == 1 else many)
    if arguments.html:
        jentropy.report.write_html(reports, arguments.html)
    if arguments.png:
        jentropy.report.write_png(reports, arguments.png)
    if arguments.csv:
        jentropy.report.write_csv(reports, arguments.csv)
    return 0


def print_report(report: EntropyReport) -> None:
    """Prints a report's formats and fields, what contexts tell, and what coding saves.

    Args:
      report: what `jentropy.analyze` gives.
    """
    print_table(
        f"{report.source}: {report.headline}; bits per weight",
        ("format", "weights", "allocated", "entropy", "joint entropy", "used"),
        _rows(report),
    )
    if report.weights:
        bound = f"at most {report.savings.speed_bound:.2f} times as fast where reading them is all"
        print(f"{report.savings.verdict}; {bound}")
    gains = {name: f"{gain.bits:.4f} {name}" for name, gain in report.contexts.items()}
    if gains:
        print(f"bits that contexts would save: {', '.join(gains.values())}")


def _rows(report: EntropyReport) -> Iterator[tuple[str, ...]]:
    for name, row in report.formats.items():
        joint = "" if row.joint_entropy_bits is None else f"{row.joint_entropy_bits:.3f}"
        bits = f"{row.allocated_bits:.2f}", f"{row.entropy_bits:.3f}", joint
        yield *counted(name, row), *bits, f"{row.used_fraction:.1%}"
        for key, field in row.fields.items():
            share = field.entropy_bits / field.allocated_bits if field.allocated_bits else 0.0
            bits = f"{field.allocated_bits:.2f}", f"{field.entropy_bits:.3f}", ""
            yield f"  {key}", "", *bits, f"{share:.1%}"
