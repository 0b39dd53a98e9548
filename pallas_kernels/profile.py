"""`python -m jentropy.pallas_kernels.profile --tpu v5e`: kernels against memory, without a device.

The real compiler schedules every product for the TPU or GPU named, and on TPU every decode to dense
BF16; only the compilers of extra `aot` are needed. `profiling.tpu` and `profiling.hopper` say what
is printed. Exit codes: 0 done, 1 a budget is exceeded (with --check), 2 bad input.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jentropy.errors import CheckError, JentropyError

from .profiling import budgets, compiling, crossover, hopper, hopper_grouped, tpu, tpu_grouped
from .targets import TPUS
from .variants import VARIANTS

CHECK_FAILED, BAD_INPUT = 1, 2
BUDGETED = [name for name, variant in VARIANTS.items() if variant.ceilings]
OF_EXPERTS = [name for name in BUDGETED if VARIANTS[name].experts]
BETTER = {"lower": min, "cover": max}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line; returns its exit code."""
    try:
        return _run(_parser().parse_args(argv))
    except JentropyError as error:
        print(f"profile: {error}", file=sys.stderr)
        return CHECK_FAILED if isinstance(error, CheckError) else BAD_INPUT


def _run(arguments: argparse.Namespace) -> int:
    target = arguments.tpu or arguments.gpu
    kind: Any = tpu if target in TPUS else hopper
    of_experts: Any = tpu_grouped if target in TPUS else hopper_grouped
    shape, rows = tuple(arguments.shape or kind.SHAPE), arguments.rows or kind.DEFAULT_ROWS
    layers = arguments.experts
    products = BUDGETED if target in TPUS else list(budgets.HOPPER_VARIANTS)
    of = (
        {"shape": list(shape)} if layers is None else {"layers": layers or list(tpu_grouped.LAYERS)}
    )
    formats = arguments.formats or (products if layers is None else OF_EXPERTS)
    table = arguments.json != "-"
    figures = {}
    with tempfile.TemporaryDirectory(prefix="profile-") as folder:
        dump = Path(folder)
        compiling.prepare(target, dump)
        versions = compiling.versions(target)
        if arguments.crossover:
            for name, most in crossover.measured(dump, target, formats):
                print(json.dumps({target: {name: most}}), flush=True)
            return 0
        if table:
            words = ", ".join(f"{name} {version}" for name, version in versions.items())
            what = "experts" if layers is not None else f"weight {shape[0]} x {shape[1]}"
            print(f"{target}, {words}, {what}")
            print(_line(kind.COLUMNS, list(kind.COLUMNS)))
        found = (
            kind.measured(dump, target, formats, rows, shape)
            if layers is None
            else of_experts.measured(dump, target, formats, of["layers"], arguments.rows or ())
        )
        for name, measured in found:
            figures[name] = measured
            if table:
                print(_line(kind.COLUMNS, [name, *measured.cells()]), flush=True)
    if arguments.json:
        _write_json(arguments.json, {"target": target, **versions, **of}, figures)
    known = budgets.names(target)
    budgeted = {name: one.budgeted() for name, one in figures.items() if name in known}
    if arguments.write:
        budgets.write(target, budgeted, BETTER[arguments.write])
    over = budgets.exceeded(target, budgeted) if arguments.check else []
    if over:
        raise CheckError(f"budgets of {target}: " + "; ".join(over))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m jentropy.pallas_kernels.profile",
        description="Static figures of the kernels from the real compilers; no device is needed.",
    )
    device = parser.add_mutually_exclusive_group(required=True)
    device.add_argument("--tpu", choices=list(TPUS), help="the TPU to compile for")
    device.add_argument("--gpu", choices=[hopper.TARGET], help="the GPU to compile for")
    parser.add_argument("--json", metavar="FILE", help="write the figures as JSON (- for stdout)")
    parser.add_argument(
        "--formats",
        nargs="+",
        choices=BUDGETED,
        metavar="FORMAT",
        help=f"of {', '.join(BUDGETED)}; by default all that have budgets",
    )
    parser.add_argument(
        "--rows",
        nargs="+",
        type=int,
        metavar="M",
        help="rows of x, with --experts tokens; those that have budgets by default",
    )
    parser.add_argument(
        "--shape",
        nargs=2,
        type=int,
        metavar=("K", "N"),
        help=f"of the weight; on TPU {tpu.SHAPE}, multiples of 2048, two along K at least",
    )
    parser.add_argument(
        "--crossover",
        action="store_true",
        help="on TPU, print up to how many rows of x fused products are the faster, and no more",
    )
    parser.add_argument(
        "--experts",
        nargs="*",
        choices=list(tpu_grouped.LAYERS),
        metavar="LAYER",
        help=f"visits to experts of {'; '.join(tpu_grouped.LAYERS)}, by default of all, in "
        "place of products",
    )
    parser.add_argument("--check", action="store_true", help="fail where a budget is exceeded")
    parser.add_argument(
        "--write",
        choices=list(BETTER),
        help="set budgets that are beaten down to these figures, or up, for another jax version",
    )
    return parser


def _line(columns: dict[str, int], texts: Sequence[str]) -> str:
    """Cells of a row beside each other, the first to the left."""
    first, *rest = (text.rjust(width) for text, width in zip(texts, columns.values(), strict=True))
    return "  ".join((texts[0].ljust(len(first)), *rest)).rstrip()


def _write_json(file: str, head: dict[str, Any], figures: dict[str, Any]) -> None:
    rows: dict[str, list[dict[str, Any]]] = {"products": [], "decodes": []}
    for name, one in figures.items():
        m = {} if one.m is None else {"m": one.m}
        label = name.removesuffix(budgets.DECODE).partition(" M=")[0]
        row = {"name": name, "format": label, **m, **one.to_json(), "held": one.budgeted()}
        rows["products" if m else "decodes"].append(row)
    text = json.dumps(head | rows, indent=1)
    if file == "-":
        print(text)
    else:
        Path(file).write_text(text + "\n")


if __name__ == "__main__":
    sys.exit(main())
