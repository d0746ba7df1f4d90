"""Text that people chose, in files that spreadsheets open."""

from __future__ import annotations

# Characters with which spreadsheets begin a formula, or which they skip before one: tab, line feed, vertical
# tab, form feed, carriage return, space, + - = @ and their full-width forms. The apostrophe is among them so
# that what was put in front can be told from what was there.
DANGEROUS = (9, 10, 11, 12, 13, 32, 39, 43, 45, 61, 64, 0xFF0B, 0xFF0D, 0xFF1D, 0xFF20)
_DANGEROUS = tuple(map(chr, DANGEROUS))


def harmless(text: str) -> str:
    """An apostrophe before text that a spreadsheet might take for a formula; one taken off gives the text."""
    return f"'{text}" if text.startswith(_DANGEROUS) else text
