"""A statement on paper: the same bytes whenever it is drawn.

The font comes with the package that makes the PDF, so that no machine has
another one. It has the letters of Western Europe; a character that it has no
glyph for is written as its code point, such as ``<4E2D>``. Keys and tenants
have identifiers beside their names, and the CSV has the names as they are.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, partial
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

from reportlab.lib import colors
from reportlab.lib.pagesizes import A4, landscape
from reportlab.lib.styles import ParagraphStyle
from reportlab.lib.units import mm
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.ttfonts import TTFont
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import CondPageBreak, LongTable, Paragraph, SimpleDocTemplate, Spacer, TableStyle

from budgets.pricing import usd_in_full
from budgets.usage import estimated_share

if TYPE_CHECKING:
    from budgets.models import Statement

PLAIN, BOLD = "Vera", "VeraBd"
MARGIN = 15 * mm

TEXT = ParagraphStyle("text", fontName=PLAIN, fontSize=8, leading=10, splitLongWords=True)
SMALL = ParagraphStyle("small", parent=TEXT, fontSize=7, leading=8.5)
NUMBER = ParagraphStyle("number", parent=SMALL, alignment=2)
NAME = ParagraphStyle("name", parent=SMALL, fontName=BOLD)
NAME_OF_NUMBER = ParagraphStyle("name of number", parent=NUMBER, fontName=BOLD)
TITLE = ParagraphStyle("title", parent=TEXT, fontName=BOLD, fontSize=16, leading=20)
HEADING = ParagraphStyle("heading", parent=TEXT, fontName=BOLD, fontSize=10, leading=14, spaceBefore=10)

FIGURE_HEADS = ("Requests", "Input", "Cached", "Output", "Estimated", "GPU s", "Cost USD")
# Of the columns of figures, in millimetres; names share what is left of the line.
FIGURE_WIDTHS = (19, 24, 22, 24, 18, 25, 28)


def pdf_of(statement: Statement) -> bytes:
    """The paper of a statement, from what stands in its row and nothing else."""
    _register_fonts()
    paper = io.BytesIO()
    document = SimpleDocTemplate(
        paper,
        pagesize=landscape(A4),
        leftMargin=MARGIN,
        rightMargin=MARGIN,
        topMargin=MARGIN,
        bottomMargin=MARGIN + 5 * mm,
        title=f"Statement {statement.number}",
        author=_shown(statement.issuer),
        # No moment and no random mark in the file.
        invariant=1,
    )
    foot = f"{statement.issuer} · statement {statement.number} · {statement.tenant} {statement.month:%Y-%m}"
    document.build(list(_parts(statement)), canvasmaker=partial(_NumberedCanvas, foot=_shown(foot)))
    return paper.getvalue()


def share(line: Mapping[str, Any]) -> str:
    """How much of the tokens of a line is estimated, in percent, as the portal tells it in English."""
    per_mille = estimated_share(line)
    return f"{per_mille // 10}.{per_mille % 10} %"


def seconds(milliseconds: int) -> str:
    """Milliseconds as seconds, exactly."""
    sign = "-" if milliseconds < 0 else ""
    return f"{sign}{abs(milliseconds) // 1000}.{abs(milliseconds) % 1000:03d}"


@cache
def _register_fonts() -> None:
    pdfmetrics.registerFont(TTFont(PLAIN, "Vera.ttf"))
    pdfmetrics.registerFont(TTFont(BOLD, "VeraBd.ttf"))


def _shown(text: str) -> str:
    """A text in characters that the font has."""
    glyphs = pdfmetrics.getFont(PLAIN).face.charToGlyph
    has = [sign.isprintable() and ord(sign) in glyphs for sign in text]
    return "".join(sign if it else f"<{ord(sign):04X}>" for sign, it in zip(text, has, strict=True))


def _heading(text: str) -> Iterable[Any]:
    # Not alone at the foot of a page.
    yield CondPageBreak(30 * mm)
    yield _paragraph(text, HEADING)


def _paragraph(text: str, style: ParagraphStyle) -> Paragraph:
    return Paragraph(escape(_shown(text)), style)


def _parts(statement: Statement) -> Iterable[Any]:
    yield _paragraph(f"Statement {statement.number}", TITLE)
    yield from (_paragraph(row, TEXT) for row in _about(statement))
    lines: list[dict[str, Any]] = statement.lines
    by_part = {
        part: [line for line in lines if line["part"] == part] for part in ("usage", "late", "correction")
    }

    yield from _heading("Usage of the month")
    yield _table(
        ("Key", "Model"), (60, 47), [((line["key"], line["model"]), line) for line in by_part["usage"]]
    )
    if by_part["late"]:
        yield from _heading("Late usage of months that were closed already")
        yield _table(
            ("Of month", "Key", "Model"),
            (17, 48, 42),
            [((line["closed_month"], line["key"], line["model"]), line) for line in by_part["late"]],
        )
    if by_part["correction"]:
        yield from _heading("Corrections")
        yield _table(
            ("Of month", "Request, key, model", "Reason, and by whom"),
            (17, 52, 38),
            [
                (
                    (
                        line["closed_month"] or f"{statement.month:%Y-%m}",
                        f"{line['request_id']} {line['key']} {line['model']}",
                        f"{line['reason']} ({line['actor']})",
                    ),
                    line,
                )
                for line in by_part["correction"]
            ],
        )
    yield from _heading("Total")
    total = {name: getattr(statement, name) for name in _FIGURES}
    yield _table(("All of the above",), (107,), [((f"Total {statement.month:%Y-%m}",), total)])
    yield from _prices(statement.prices)
    yield Spacer(1, 4 * mm)
    yield _paragraph(f"SHA-256 of the CSV of this statement: {statement.csv_sha256}", SMALL)
    yield _paragraph(
        f"SHA-256 of its {statement.closing.entries} entries, one by one: {statement.closing.export_sha256}",
        SMALL,
    )


_FIGURES = (
    "requests", "input_tokens", "cached_tokens", "output_tokens", "estimated_tokens", "gpu_ms",
    "cost_micro_usd",
)  # fmt: skip


def _about(statement: Statement) -> Iterable[str]:
    yield f"Issued by {statement.issuer} on {statement.drawn_at:%Y-%m-%d %H:%M} UTC"
    yield f"For {statement.tenant_name} ({statement.tenant}, {statement.tenant_id})"
    days = f"from {statement.month:%Y-%m-%d} to before {statement.before:%Y-%m-%d}"
    yield f"Month {statement.month:%Y-%m} in the time zone {statement.time_zone}: {days}"
    if statement.replaces is not None:
        yield f"Revision {statement.revision}; replaces statement {statement.replaces.number}"
    yield "Cached input is part of the input. Estimated: the share of input and output that is not exact."


def _figures(line: dict[str, Any]) -> Sequence[str]:
    return (
        str(line["requests"]),
        str(line["input_tokens"]),
        str(line["cached_tokens"]),
        str(line["output_tokens"]),
        share(line),
        seconds(line["gpu_ms"]),
        usd_in_full(line["cost_micro_usd"]),
    )


def _table(
    names: Sequence[str], widths: Sequence[int], rows: Iterable[tuple[Sequence[str], dict[str, Any]]]
) -> LongTable:
    head = [_paragraph(name, NAME) for name in names]
    head += [_paragraph(name, NAME_OF_NUMBER) for name in FIGURE_HEADS]
    body = [
        [_paragraph(text, SMALL) for text in texts] + [_paragraph(text, NUMBER) for text in _figures(line)]
        for texts, line in rows
    ]
    table = LongTable(
        [head, *body],
        colWidths=[width * mm for width in (*widths, *FIGURE_WIDTHS)],
        repeatRows=1,
        hAlign="LEFT",
    )
    table.setStyle(_RULED)
    return table


def _prices(prices: list[dict[str, Any]]) -> Iterable[Any]:
    if not prices:
        return
    yield from _heading("Prices: USD for a million tokens, and for a second of GPU time")
    names = ("Model", "Version", "Input", "Cached", "Output", "GPU second")
    head = [_paragraph(name, NAME if number < 2 else NAME_OF_NUMBER) for number, name in enumerate(names)]
    body = [
        [_paragraph(price["model"], SMALL), _paragraph(price["price_id"], SMALL)]
        + [
            _paragraph("" if price[name] is None else usd_in_full(price[name]), NUMBER)
            for name in ("input_price", "cached_price", "output_price", "gpu_price")
        ]
        for price in prices
    ]
    table = LongTable(
        [head, *body],
        colWidths=[width * mm for width in (80, 67, 30, 30, 30, 30)],
        repeatRows=1,
        hAlign="LEFT",
    )
    table.setStyle(_RULED)
    yield table


_RULED = TableStyle(
    [
        ("VALIGN", (0, 0), (-1, -1), "TOP"),
        ("LINEBELOW", (0, 0), (-1, 0), 0.8, colors.black),
        ("LINEBELOW", (0, 1), (-1, -1), 0.25, colors.lightgrey),
        ("LEFTPADDING", (0, 0), (-1, -1), 2),
        ("RIGHTPADDING", (0, 0), (-1, -1), 2),
        ("TOPPADDING", (0, 0), (-1, -1), 1.5),
        ("BOTTOMPADDING", (0, 0), (-1, -1), 1.5),
    ]
)


class _NumberedCanvas(Canvas):
    """Writes the foot of every page when it is known how many there are."""

    def __init__(self, *arguments: Any, foot: str, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._foot = foot
        self._pages: list[dict[str, Any]] = []

    def showPage(self) -> None:  # noqa: N802, the library's name
        self._pages.append(dict(self.__dict__))
        self._startPage()

    def save(self) -> None:
        for number, page in enumerate(self._pages, 1):
            self.__dict__.update(page)
            self.setFont(PLAIN, 7)
            self.drawString(MARGIN, MARGIN - 3 * mm, self._foot)
            self.drawRightString(
                landscape(A4)[0] - MARGIN, MARGIN - 3 * mm, f"page {number} of {len(self._pages)}"
            )
            super().showPage()
        super().save()
