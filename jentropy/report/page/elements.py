"""HTML and SVG as text: elements, tables, and numbers as a page shows them."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence


def element(tag: str, *content: str, **attributes: object) -> str:
    """An element around content that is HTML already.

    Args:
      tag: of the element.
      content: of it.
      attributes: escaped; `_` stands for `-`, and one at the end is left out (`class_`).

    Example:
      >>> element("b", "x", class_="y", data_tip="1 < 2")
      '<b class="y" data-tip="1 &lt; 2">x</b>'
    """
    told = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for name, value in attributes.items()
        if value is not None
    )
    return f"<{tag}{told}>{''.join(content)}</{tag}>"


def text(value: object) -> str:
    """Text as HTML.

    Example:
      >>> text("a < b")
      'a &lt; b'
    """
    return html.escape(str(value))


def table(head: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "") -> str:
    """A table of texts, which scrolls by itself where it is too wide.

    Example:
      >>> table(["a"], [["1"]]).count("<td>")
      1
    """
    top = element("thead", element("tr", *(element("th", text(one), scope="col") for one in head)))
    lines = (element("tr", *(element("td", text(cell)) for cell in row)) for row in rows)
    named = element("caption", text(caption)) if caption else ""
    body = element("table", named, top, element("tbody", *lines))
    return element("div", body, class_="wide", tabindex=0)


def bits(value: float | None) -> str:
    """Bits per weight.

    Example:
      >>> bits(2.58375), bits(None)
      ('2.584', '')
    """
    return "" if value is None else f"{value:.3f}"


def amount(value: float) -> str:
    """A number of bytes.

    Example:
      >>> amount(1.5e9), amount(12)
      ('1.50 GB', '12 B')
    """
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= factor:
            return f"{value / factor:.2f} {unit}"
    return f"{value:.0f} B"


def percent(share: float) -> str:
    """A place in a drawing that is as wide as its box.

    Example:
      >>> percent(0.5)
      '50%'
    """
    return f"{round(100 * share, 3):g}%"
