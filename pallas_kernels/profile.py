"""`python -m jentropy.pallas_kernels.profile --tpu v5e`: kernels against memory, without a device.

The real compiler schedules every product for the TPU named, and every decode to dense BF16; no such
device is needed, only libtpu (extra `aot`). For each format and plan it prints

    bundles   of a step of the grid: its instruction words, loops times their trips. What only the
              first or the last step along K does is spread over the steps; copies are included
    HBM       cycles in which memory moves the step's weights, scales and escapes, and the numbers
              that they are decoded to
    ratio     bundles / HBM cycles: below 1, memory is what the kernel waits for
    dense     of a product, the longer of the two against that of the dense BF16 product of the same
              weights
    slots     operations of the step by unit, FILL and SPILL being registers from and to memory

Bundles leave out waits, so they are a lower bound of time. `--gpu h200` reads machine code instead,
see `profiling.gpu_report`. Exit codes: 0 done, 1 a budget is
exceeded (with --check), 2 bad input.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from jentropy.errors import CheckError, JentropyError

from .profiling import budgets, compiling, gpu_report
from .profiling.measuring import SHAPE, Figures, measure, measure_decode, measure_dense
from .profiling.schedule import SLOTS
from .profiling.weights import FORMATS

CHECK_FAILED, BAD_INPUT = 1, 2
DENSE = "dense BF16"
COLUMNS = ("format", "M", "tile", "bundles", "HBM", "ratio", "dense", *SLOTS)
# A format, rows of x of a product, its figures, those of the dense product.
Row = tuple[str, int | None, Figures, Figures | None]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line; returns its exit code."""
    try:
        return _run(argv)
    except JentropyError as error:
        print(f"profile: {error}", file=sys.stderr)
        return CHECK_FAILED if isinstance(error, CheckError) else BAD_INPUT


def _run(argv: Sequence[str] | None) -> int:
    arguments = _parser().parse_args(argv)
    better = {"lower": min, "cover": max}.get(arguments.write)
    if arguments.gpu:
        with tempfile.TemporaryDirectory(prefix="profile-") as folder:
            gpu_report.run(
                Path(folder),
                arguments.rows or gpu_report.ROWS,
                tuple(arguments.shape or gpu_report.SHAPE),
                file=arguments.json,
                check=arguments.check,
                write=better,
            )
        return 0
    target, shape = arguments.tpu, tuple(arguments.shape or SHAPE)
    with tempfile.TemporaryDirectory(prefix="profile-") as folder:
        dump = Path(folder)
        compiling.prepare(dump)
        rows: list[Row] = []
        if arguments.json != "-":
            print(f"{target}, {describe()}, weight {shape[0]} x {shape[1]}")
            print(line(COLUMNS))
        for row in _measured(
            dump, target, arguments.formats, arguments.rows or [budgets.ROWS], shape
        ):
            rows.append(row)
            if arguments.json != "-":
                print(line(cells(*row)), flush=True)
    if arguments.json:
        write_json(arguments.json, target, shape, rows)
    measured = {n: f for n, m, f, _ in rows if m in (budgets.ROWS, None) and n != DENSE}
    if better:
        write_budgets(target, measured, better)
    if arguments.check:
        check(target, measured)
    return 0


def _measured(
    dump: Path, target: str, formats: Sequence[str], ms: Sequence[int], shape: tuple[int, int]
) -> Iterator[Row]:
    for m in ms:
        dense = measure_dense(dump, target, m, shape)
        yield DENSE, m, dense, dense
        for name in formats:
            yield name, m, measure(dump, target, FORMATS[name], m, shape), dense
    for name in formats:
        found = measure_decode(dump, target, FORMATS[name], shape)
        yield name + budgets.DECODE, None, found, None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m jentropy.pallas_kernels.profile",
        description="Static figures of the kernels from the real compilers; no device is needed.",
    )
    device = parser.add_mutually_exclusive_group(required=True)
    device.add_argument("--tpu", choices=list(compiling.TOPOLOGIES), help="the TPU to compile for")
    device.add_argument("--gpu", choices=[gpu_report.TARGET], help="the GPU to compile for")
    parser.add_argument("--json", metavar="FILE", help="write the figures as JSON (- for stdout)")
    parser.add_argument(
        "--formats",
        nargs="+",
        choices=list(FORMATS),
        default=list(FORMATS),
        metavar="FORMAT",
        help=f"of {', '.join(FORMATS)}; all by default",
    )
    parser.add_argument(
        "--rows",
        nargs="+",
        type=int,
        metavar="M",
        help="rows of x; on TPU 16, and fewer run as 16",
    )
    parser.add_argument(
        "--shape",
        nargs=2,
        type=int,
        metavar=("K", "N"),
        help=f"of the weight; on TPU {SHAPE}, multiples of 2048, two of them along K at least",
    )
    parser.add_argument("--check", action="store_true", help="fail where a budget is exceeded")
    parser.add_argument(
        "--write",
        choices=["lower", "cover"],
        help="set budgets that are beaten down to these figures, or up, for another jax version",
    )
    return parser


def describe() -> str:
    """Versions in words."""
    return ", ".join(f"{name} {version}" for name, version in compiling.versions().items())


def cells(name: str, m: int | None, figures: Figures, dense: Figures | None) -> list[str]:
    """A row of the table."""
    own, tile = figures.schedule, figures.tile
    share = "" if dense is None else f"{_share(figures, dense):.2f}"
    return [
        name,
        "" if m is None else str(m),
        f"{tile[0]}x{tile[1]}",
        f"{own.bundles:.0f}",
        f"{figures.hbm_cycles:.0f}",
        f"{figures.ratio:.3f}",
        share,
        *(f"{own.slots[slot]:.0f}" for slot in SLOTS),
    ]


def _share(figures: Figures, dense: Figures) -> float:
    return figures.cycles(budgets.UNIT) / dense.cycles(budgets.UNIT)


def line(texts: Sequence[str]) -> str:
    """Cells of a row beside each other."""
    widths = (22, 3, 9, 7, 5, 5, 5, *(6 for _ in SLOTS))
    first, *rest = (
        text.ljust(width) if i == 0 else text.rjust(width)
        for i, (text, width) in enumerate(zip(texts, widths, strict=True))
    )
    return "  ".join((first, *rest)).rstrip()


def write_json(file: str, target: str, shape: tuple[int, ...], rows: Sequence[Row]) -> None:
    """Figures as JSON."""
    document = {
        "target": target,
        **compiling.versions(),
        "shape": list(shape),
        "products": [
            {
                "format": name,
                "m": m,
                **figures.to_json(),
                "held": budgets.held(figures),
                "dense_share": round(_share(figures, dense), 4),
            }
            for name, m, figures, dense in rows
            if dense is not None
        ],
        "decodes": [
            {
                "format": name.removesuffix(budgets.DECODE),
                **figures.to_json(),
                "held": budgets.held(figures),
            }
            for name, m, figures, _ in rows
            if m is None
        ],
    }
    text = json.dumps(document, indent=1)
    if file == "-":
        print(text)
    else:
        Path(file).write_text(text + "\n")


def write_budgets(target: str, measured: dict[str, Figures], better: Callable[..., float]) -> None:
    """Writes the lower (`min`) or higher (`max`) of what is held and what these figures set."""
    proposals = {name: budgets.proposed(target, name, own) for name, own in measured.items()}
    budgets.write(target, proposals, better)


def check(target: str, measured: dict[str, Figures]) -> None:
    """Raises where a budget is exceeded."""
    known = budgets.load().get(target, {})
    over = [
        f"{name}: {what} {found:.3f} above {allowed}"
        for name, figures in measured.items()
        for what, (found, allowed) in budgets.exceeded(figures, known[name]).items()
    ]
    if over:
        raise CheckError(f"budgets of {target}: " + "; ".join(over))


if __name__ == "__main__":
    sys.exit(main())
