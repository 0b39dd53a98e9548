"""Where the bits go: a bar for each source, grouped by format; all bits are as wide as the box."""

from __future__ import annotations

from collections.abc import Sequence

from jentropy.entropy import EntropyReport, FormatReport
from jentropy.formats import RAW
from jentropy.report.labels import FIELD_COLORS, OTHER_COLOR, Look

from .elements import element, percent, text

HEIGHT = 20


def formats_of(reports: Sequence[EntropyReport]) -> list[str]:
    """Formats that weights of any report have, the widest first."""
    widest: dict[str, float] = {}
    for report in reports:
        for name, row in report.formats.items():
            if name != RAW:
                widest[name] = max(widest.get(name, 0.0), row.allocated_bits)
    return sorted(widest, key=lambda name: (-widest[name], name))


def draw(reports: Sequence[EntropyReport], looks: Sequence[Look]) -> str:
    """Chips that hide formats, what the colours mean, and the bars."""
    names = formats_of(reports)
    if not names:
        return element("p", "No weights.")
    chips = (
        element("button", text(name), type="button", data_chip=name, aria_pressed="true")
        for name in names
    )
    groups = (_group(name, reports, looks) for name in names)
    return "".join(
        (
            element("div", *chips, class_="chips", role="group", aria_label="formats shown"),
            _legend(reports),
            *groups,
        )
    )


def _legend(reports: Sequence[EntropyReport]) -> str:
    used = {field for r in reports for n, row in r.formats.items() if n != RAW
            for field in row.fields}  # fmt: skip
    keys = [(name, color) for name, color in FIELD_COLORS.items() if name in used]
    entries = (
        element("li", element("i", style=f"background:{color}"), text(name.replace("_", " ")))
        for name, color in keys
    )
    unused = element("li", element("i", class_="unused"), "allocated, without information")
    return element("ul", *entries, unused, class_="legend")


def _group(name: str, reports: Sequence[EntropyReport], looks: Sequence[Look]) -> str:
    widest = max(r.formats[name].allocated_bits for r in reports if name in r.formats)
    rows = (
        _bar(look, name, report.formats[name], widest)
        for report, look in zip(reports, looks, strict=True)
        if name in report.formats
    )
    title = element("h3", text(name), " ", element("small", text(f"{widest:.4g} bits")))
    return element("div", title, *rows, class_="bars", data_format=name)


def _bar(look: Look, name: str, row: FormatReport, widest: float) -> str:
    parts, at = [], 0.0

    def segment(bits: float, tip: str, **looks: str) -> None:
        nonlocal at
        if bits > 0:
            place = {"x": percent(at / widest), "width": percent(bits / widest)}
            tip = f"{look.label}, {name}: {tip}"
            parts.append(element("rect", **place, y=0, height=HEIGHT, data_tip=tip, **looks))
            at += bits

    for key, field in row.fields.items():
        told = f"{field.entropy_bits:.4f} of {field.allocated_bits:.4f} bits"
        color = FIELD_COLORS.get(key, OTHER_COLOR)
        segment(field.entropy_bits, f"{key.replace('_', ' ')} carries {told}", fill=color)
    unused = row.allocated_bits - row.entropy_bits
    segment(unused, f"{unused:.4f} bits carry nothing", class_="unused")
    share = f"{row.used_fraction:.1%}"
    summary = f"{look.label}: {row.entropy_bits:.3f} of {row.allocated_bits:.3f} bits, {share} used"
    return element(
        "div",
        element("span", text(look.label), class_="name", data_tip=summary),
        element("svg", *parts, width="100%", height=HEIGHT, role="img", aria_label=summary),
        element("span", share, class_="share"),
        class_="bar",
    )
