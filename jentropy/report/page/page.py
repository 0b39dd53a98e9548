"""The page: sections in order, style and script, within a size."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from jentropy.entropy import EntropyReport, compare
from jentropy.errors import DestinationError
from jentropy.report.labels import Look, listed, looks_of

from . import bars, curves, data, tables
from .elements import element, text

MOST_BYTES = 2_000_000
_ABOUT = (
    "Entropy is Shannon's, of each field's codes: the bits that carry information, of those that "
    "are stored."
)


def write_html(reports: EntropyReport | Sequence[EntropyReport], file: str | Path) -> None:
    """Writes a page about one report, or several to compare.

    The page is one file that loads nothing, of at most two megabytes: the tensors in its table
    are those that waste most, see `write_csv` for all.

    Args:
      reports: what to show.
      file: the page; its folder is made if it is missing.

    Raises:
      DestinationError: it cannot be written.

    Example:
      >>> import tempfile, numpy as np, jentropy
      >>> report = jentropy.analyze({"w": np.ones((4, 4), np.float16)})
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     write_html(report, f"{folder}/report.html")
      ...     Path(folder, "report.html").read_text().startswith("<!doctype html>")
      True
    """
    many = listed(reports)
    path = Path(file)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page_of(many), encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise DestinationError(f"cannot write: {error.strerror}", file=path) from error


def page_of(reports: Sequence[EntropyReport]) -> str:
    """The page as text; half as many tensors have rows until it is small enough.

    Example:
      >>> import numpy as np, jentropy
      >>> "Entropy of model weights" in page_of([jentropy.analyze({"w": np.ones(4, np.float16)})])
      True
    """
    looks = looks_of(reports)
    sections = "".join(_sections(reports, looks))
    heat = data.heat(reports, looks)
    rows = data.TENSORS
    while True:
        told = data.tensors(reports, rows)
        page = _assembled(reports, looks, sections, heat, told)
        if len(page.encode()) <= MOST_BYTES or rows == 0:
            return page
        rows //= 2


Section = Callable[[Sequence[EntropyReport], Sequence[Look]], str]
SECTIONS: tuple[tuple[str, str, Section], ...] = (
    ("bits", "Where the bits go", bars.draw),
    ("magnitudes", "How large weights are", curves.draw),
    ("savings", "What could be gained", tables.savings),
    ("contexts", "Are weights i.i.d.?", tables.contexts),
)
DETAILS: tuple[tuple[str, Section], ...] = (
    ("Formats in figures", tables.formats),
    ("Roles in figures", tables.roles),
    ("Magnitudes in figures", tables.magnitudes),
)


def _sections(reports: Sequence[EntropyReport], looks: Sequence[Look]) -> list[str]:
    shown = [
        element("section", element("h2", text(title)), draw(reports, looks), id=name)
        for name, title, draw in SECTIONS
    ]
    if len(reports) > 1:
        compared = tables.comparison(compare(reports), looks)
        shown.append(element("section", element("h2", "How alike they are"), compared, id="alike"))
    layouts = element("section", element("h2", "How bits are laid out"), tables.layouts(reports))
    details = (
        element("details", element("summary", text(title)), draw(reports, looks))
        for title, draw in DETAILS
    )
    return [*shown, layouts, element("section", *details)]


def _assembled(
    reports: Sequence[EntropyReport],
    looks: Sequence[Look],
    sections: str,
    heat: list[dict[str, Any]],
    rows: list[list[Any]],
) -> str:
    missing = data.dropped(reports, len(rows))
    note = f"The {len(rows):,} tensors that waste most; {missing:,} more are in no row."
    told = note if missing else f"All {len(rows):,} tensors."
    labels = [look.label for look in looks]
    script_data = json.dumps(
        {"labels": labels, "heat": heat, "tensors": rows}, separators=(",", ":")
    ).replace("<", "\\u003c")
    lines = (
        element("li", element("b", text(look.label)), f" {text(report.headline)}")
        for report, look in zip(reports, looks, strict=True)
    )
    body = (
        element("h1", "Entropy of model weights"),
        element("p", text(_ABOUT)),
        element("ul", *lines, class_="sources"),
        sections,
        element("section", element("h2", "Layer by role"), element("div", id="heat"), id="layers"),
        element(
            "section",
            element("h2", "Tensors"),
            element("p", text(told), class_="note"),
            '<input id="filter" type="search" placeholder="filter" aria-label="filter tensors">',
            element("div", id="tensors", class_="wide", tabindex=0),
        ),
        element("div", id="tip", role="tooltip", hidden=""),
    )
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>Entropy of {text(', '.join(labels[:3]))}</title>"
        f"<style>{_resource('page.css')}</style>"
    )
    script = (
        f'<script type="application/json" id="data">{script_data}</script>'
        f"<script>{_resource('page.js')}</script>"
    )
    return (
        f'<!doctype html><html lang="en"><head>{head}</head>'
        f"<body><main>{''.join(body)}</main>{script}</body></html>\n"
    )


def _resource(name: str) -> str:
    return (resources.files(__package__) / name).read_text(encoding="utf-8")
