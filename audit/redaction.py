"""Taking secrets out of a text before it is kept.

Our own patterns find the secrets that are known by their looks. Those of a
tenant are no regular expressions but templates, so that none of them can take
long: each matches a bounded number of characters, at each place of the text in
one way only. What takes time is cut into pieces, because a thread that looks
for a pattern lets no other thread run, and these stream answers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

MARK = "[redacted]"

# Of a template: what it may be made of, and how much of a text it may match.
CLASSES = {"#": "[0-9]", "@": r"[^\W\d_]", "?": r"[^\W_]"}
MOST_TEMPLATES = 10
LONGEST_TEMPLATE = 60
LEAST_MATCHED = 3
MOST_REPEATED = 32
LONGEST_MATCH = 128
PIECE = 2048

_BLOCK = r"[A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----"
# How a value stands behind its name, in headers, JSON, settings and programs.
_IS = r"[\"']?[ \t]{0,8}[:=][ \t]{0,8}[\"']?"
_NAMES = "password|passwd|api[_-]?key|access[_-]?token|client[_-]?secret"

# Each goes over the text once: behind a run without end nothing has to match, or it can only begin
# where no run does.
_KNOWN = [
    re.compile(pattern)
    for pattern in (
        # Ours, also one that was cut off.
        r"tgm?_[0-9A-Za-z]{20,}+",
        rf"-----BEGIN {_BLOCK}[\s\S]*?(?:-----END {_BLOCK}|\Z)",
        r"(?i:(?P<kept>\bbearer[ \t]{1,8}))[A-Za-z0-9._~+/=-]{16,}+",
        rf"(?i:(?P<kept>\bauthorization{_IS}(?:basic[ \t]{{1,8}})?))[^\s\"',\[]{{8,}}+",
        r"(?<![A-Za-z0-9_-])eyJ[A-Za-z0-9_-]{8,}+\.[A-Za-z0-9_-]{8,}+(?:\.[A-Za-z0-9_-]*+)?",
        r"(?<![A-Za-z0-9])sk-[A-Za-z0-9_-]{16,}+",
        r"(?<![A-Za-z0-9])[rs]k_(?:live|test)_[A-Za-z0-9]{16,}+",
        r"(?<![A-Za-z0-9])(?:AKIA|ASIA)[0-9A-Z]{16}",
        r"gh[oprsu]_[A-Za-z0-9]{20,}+",
        r"github_pat_[A-Za-z0-9_]{20,}+",
        r"glpat-[A-Za-z0-9_-]{16,}+",
        r"xox[abeprs]-[A-Za-z0-9-]{10,}+",
        r"AIza[0-9A-Za-z_-]{30,}+",
        r"(?<![A-Za-z0-9])hf_[A-Za-z0-9]{20,}+",
        r"(?<=://)[^\s/@:]{1,256}+:[^\s/@]{1,256}+(?=@)",
        rf"(?i:(?P<kept>(?<![A-Za-z0-9])(?:{_NAMES}){_IS}))[^\s\"',;\[]{{6,}}+",
    )
]


def redacted(text: str, templates: Iterable[str] = ()) -> str:
    """``text`` with ``MARK`` in the place of every secret that is known by its looks or by a template."""
    for pattern in _KNOWN:
        text = pattern.sub(lambda found: (found.groupdict().get("kept") or "") + MARK, text)
    for template in templates:
        text = _without(_compiled(template), text)
    return text


def check_template(template: str) -> None:
    """Raise ``ValueError`` for what is no template, with the reason."""
    parts = _parts(template)
    if len(template) > LONGEST_TEMPLATE:
        raise ValueError(f"{template!r} has more than {LONGEST_TEMPLATE} characters.")
    if len(parts) < LEAST_MATCHED:
        raise ValueError(f"{template!r} matches less than {LEAST_MATCHED} characters.")
    if sum(MOST_REPEATED if repeated else 1 for _, repeated in parts) > LONGEST_MATCH:
        raise ValueError(f"{template!r} may match more than {LONGEST_MATCH} characters: use fewer +.")


def _parts(template: str) -> list[tuple[str, bool]]:
    """What has to come one behind the other: the pattern of one character, and whether it may repeat."""
    parts: list[tuple[str, bool]] = []
    characters = iter(template)
    for character in characters:
        if not character.isprintable():
            raise ValueError(f"{template!r} has a character that cannot be printed.")
        if character == "+":
            if not parts or parts[-1][1] or parts[-1][0] not in CLASSES.values():
                raise ValueError(f"In {template!r} a + does not stand behind one of # @ ?.")
            parts[-1] = (parts[-1][0], True)
        elif character == "\\":
            escaped = next(characters, "")
            if not escaped.isprintable() or not escaped:
                raise ValueError(f"In {template!r} nothing stands behind the \\.")
            parts.append((re.escape(escaped), False))
        else:
            parts.append((CLASSES.get(character) or re.escape(character), False))
    return parts


@lru_cache(maxsize=4096)
def _compiled(template: str) -> re.Pattern[str]:
    # What repeats takes all it can and gives nothing back, so there is one way to match only.
    return re.compile(
        "".join(f"{one}{{1,{MOST_REPEATED}}}+" if repeated else one for one, repeated in _parts(template)),
        re.IGNORECASE,
    )


def _without(pattern: re.Pattern[str], text: str) -> str:
    """``text`` with ``MARK`` for every match; the pattern matches ``LONGEST_MATCH`` characters at most."""
    kept: list[str] = []
    done = position = 0
    while position < len(text):
        found = pattern.search(text, position, position + PIECE + LONGEST_MATCH)
        if found is None or found.start() >= position + PIECE:
            position += PIECE
            continue
        kept += (text[done : found.start()], MARK)
        done = position = found.end()
    kept.append(text[done:])
    return "".join(kept)
