"""Tables of a page: savings, magnitudes, contexts, comparisons, bit layouts."""

from __future__ import annotations

from collections.abc import Sequence

from jentropy.entropy import Comparison, EntropyReport, FormatReport, Gain, counted
from jentropy.entropy.contexts import CONTEXTS, SAMPLE, SEED
from jentropy.report.labels import FIELD_COLORS, OTHER_COLOR, Look

from .bars import formats_of
from .elements import amount, bits, element, percent, table, text

Looks = Sequence[Look]
Reports = Sequence[EntropyReport]


def savings(reports: Reports, looks: Looks) -> str:
    """What could be gained of each source, and where its precision came from."""
    head = ("source", "weights", "stored", "archive", "in memory", "speed bound", "worth it?",
            "precision")  # fmt: skip
    rows = []
    for report, look in zip(reports, looks, strict=True):
        saved, origin = report.savings, report.origin
        told = f"{origin.kind} ({origin.told})" if origin.told else origin.kind
        rows.append((
            look.label,
            f"{report.weights:,}",
            amount(saved.stored),
            amount(saved.archive),
            amount(saved.resident),
            f"{saved.speed_bound:.2f}x",
            saved.verdict,
            told,
        ))  # fmt: skip
    return table(head, rows)


def formats(reports: Reports, looks: Looks) -> str:
    """The figures behind the bars."""
    head = ("source", "format", "weights", "allocated", "entropy", "joint", "used")
    rows = (
        (
            look.label,
            *counted(name, row),
            f"{row.allocated_bits:.3f}",
            bits(row.entropy_bits),
            bits(row.joint_entropy_bits),
            f"{row.used_fraction:.1%}",
        )
        for report, look in zip(reports, looks, strict=True)
        for name, row in report.formats.items()
    )
    return table(head, rows)


def roles(reports: Reports, looks: Looks) -> str:
    """Formats by role."""
    head = ("source", "format", "role", "tensors", "weights", "entropy", "joint", "used",
            "mean log2 |w|", "deviation")  # fmt: skip
    rows = []
    for report, look in zip(reports, looks, strict=True):
        for name, kind in report.formats.items():
            for role, row in kind.roles.items():
                sizes = row.magnitudes
                known = sizes is not None and sizes.counted > 0
                rows.append((
                    look.label,
                    name,
                    role,
                    f"{row.tensors:,}",
                    f"{row.weights:,}",
                    bits(row.entropy_bits),
                    bits(row.joint_entropy_bits),
                    f"{row.used_fraction:.1%}",
                    f"{sizes.mean:.2f}" if sizes and known else "",
                    f"{sizes.deviation:.2f}" if sizes and known else "",
                ))  # fmt: skip
    return table(head, rows)


def magnitudes(reports: Reports, looks: Looks) -> str:
    """The statistics behind the curves."""
    head = ("source", "mean log2 |w|", "deviation", "mode", "below 2^-16", "from the reference")
    rows = []
    for report, look in zip(reports, looks, strict=True):
        one = report.magnitudes
        if one.counted:
            apart = "" if report.distance is None else f"{report.distance:.4f}"
            figures = f"{one.mean:.3f}", f"{one.deviation:.3f}", f"{one.mode():.2f}"
            rows.append((look.label, *figures, f"{one.small_fraction:.4%}", apart))
    return table(head, rows)


def contexts(reports: Reports, looks: Looks) -> str:
    """What contexts save, by source and format."""
    head = ("source", "format", *CONTEXTS)
    rows = [
        (look.label, name, *(_gain(row.contexts.get(context)) for context in CONTEXTS))
        for report, look in zip(reports, looks, strict=True)
        for name, row in report.formats.items()
        if row.contexts
    ]
    if not rows:
        return element("p", "Not measured.")
    note = (
        f"Bits per weight, with the interval of 95%. Of a tensor with more than {SAMPLE:,} weights "
        f"so many are looked at (seed {SEED}). Weights that are i.i.d. give 0 everywhere."
    )
    return table(head, rows) + element("p", text(note), class_="note")


def _gain(gain: Gain | None) -> str:
    if gain is None:
        return ""
    reach = (gain.interval[1] - gain.interval[0]) / 2
    return f"{gain.bits:.4f} ± {reach:.4f}"


def comparison(told: Comparison, looks: Looks) -> str:
    """How alike the sources' magnitudes are, and how steady the fields."""
    numbers = [str(i + 1) for i in range(len(looks))]
    pairs = table(
        ("source", *numbers),
        (
            (f"{i + 1} {look.label}", *(_apart(told, i, j) for j in range(len(looks))))
            for i, look in enumerate(looks)
        ),
        "Largest distance between normalised cumulative curves of log2 |w|",
    )
    fields = table(
        ("format", "field", "least", "most", "width", "sources"),
        (
            (kind, name, bits(one.least), bits(one.most), bits(one.width), str(one.sources))
            for kind, bands in told.fields.items()
            for name, one in bands.items()
        ),
        "Entropy of each field over the sources, bits per weight",
    )
    return pairs + fields


def _apart(told: Comparison, i: int, j: int) -> str:
    apart = told.distances.get((min(i, j), max(i, j)))
    return "" if apart is None else f"{apart:.4f}"


def layouts(reports: Reports) -> str:
    """How the bits of a weight of each format are laid out."""
    shown = []
    for name in formats_of(reports):
        row = next(r.formats[name] for r in reports if name in r.formats)
        shown.append(element("div", element("h3", text(name)), _layout(row), class_="layout"))
    return "".join(shown)


def _layout(row: FormatReport) -> str:
    """A box for each bit of a code, and one for what a block shares."""
    widest, at, parts = max(row.allocated_bits, 1.0), 0.0, []
    for name, field in row.fields.items():
        whole = round(field.allocated_bits)
        boxes = whole if whole == field.allocated_bits and whole <= 32 else 1
        wide = field.allocated_bits / boxes
        color = FIELD_COLORS.get(name, OTHER_COLOR)
        tip = f"{name.replace('_', ' ')}: {field.allocated_bits:g} bits a weight"
        for i in range(boxes):
            place = {"x": percent((at + i * wide) / widest), "width": percent(wide / widest)}
            parts.append(element("rect", **place, y=2, height=22, fill=color, data_tip=tip,
                                 class_="cell"))  # fmt: skip
        at += field.allocated_bits
    drawing = element("svg", *parts, width="100%", height=26, role="img", aria_label="bits")
    words = ", ".join(
        f"{name.replace('_', ' ')} {field.allocated_bits:.4g}" for name, field in row.fields.items()
    )
    return drawing + element("p", text(words), class_="note")
