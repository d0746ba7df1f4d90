"""The texts that people read, and their German: a catalog that is made and checked without GNU gettext.

    python -m tests.texts            take in new texts, drop those that are gone, compile the catalog
    python -m tests.texts --check    only say what is wrong with it

Texts are found in the Python of the apps and in the templates for people; the
admin is in English. Scripts have no texts: what they say, a template gives them
in ``data-…`` attributes, and ``written`` finds what a script would say by
itself. allauth brings German of its own, which mixes *du* and
*Sie*: those of its texts that say *du* are taken in too, because a catalog of
ours stands before its own.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import cache
from io import BytesIO
from pathlib import Path

import allauth
from babel.messages.catalog import Catalog, Message
from babel.messages.extract import extract
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po, write_po
from django.conf import settings
from django.template.base import Lexer, TokenType
from django.utils.translation.template import templatize

ROOT = Path(__file__).resolve().parent.parent
APPS = ("audit", "tenants", "keys", "budgets", "proxy", "config")
CATALOG = ROOT / "config" / "locale" / "de" / "LC_MESSAGES" / "django.po"
COMPILED = CATALOG.with_suffix(".mo")
THEIRS = Path(allauth.__file__).parent

KEYWORDS = {
    "_": None,
    "gettext": None,
    "gettext_lazy": None,
    "gettext_noop": None,
    "ngettext": (1, 2),
    "ngettext_lazy": (1, 2),
    "pgettext": ((1, "c"), 2),
    "pgettext_lazy": ((1, "c"), 2),
    "npgettext": ((1, "c"), 2, 3),
}
# Templates of the admin, and of what it is built on.
OF_OPERATORS = {"admin", "unfold"}
INDENTED = re.compile(r"^[ \t]+", re.MULTILINE)
OF_ALLAUTH = re.compile(r"(templates/)?(allauth|account|mfa|socialaccount|usersessions)/")
UNIVERSAL = {"Tollgate", "UTC", "USD", "CSV", "PDF", "SHA", "doctype", "html", "ms", "min"}
SAYS_DU = re.compile(r"\b(?:du|dich|dir|dein\w*)\b", re.IGNORECASE)
# What scripts say: by its name, or because it has more than one word.
SAID_BY_SCRIPTS = re.compile(r"\sdata-(?:(?:says|text)-[\w-]+=\"([^\"]*)\"|[\w-]+=\"([^\"]*\w\s+\w[^\"]*)\")")
# Comments, expressions of the kind /…/ where a value may begin, and strings, of which the last may have ${…}.
LITERAL = re.compile(
    r"//[^\n]*|/\*.*?\*/|(?<=[=(,:])\s*/(?![/*])(?:\\.|[^/\n\\])+/"
    r"|\"(?P<double>(?:\\.|[^\"\\])*)\"|'(?P<single>(?:\\.|[^'\\])*)'|`(?P<filled>(?:\\.|[^`\\])*)`",
    re.DOTALL,
)
FILLED_IN = re.compile(r"\$\{[^}]*\}")
# What stands before a string that a program reads: a question of the page, a comparison, an option of a call.
READ_BY_PROGRAMS = re.compile(
    r"(?:\b(?:querySelector(?:All)?|getElementById|createElement|addEventListener|[gs]etAttribute|field|text"
    r"|has|get|startsWith|endsWith|split|replace|closest|matches|parseFromString|fetch|end|say)\("
    r"|dataset\[|[!=]==|\bcase"
    r"|\b(?:method|credentials|cache|redirect|mode|behavior|role|scope|type|says|Authorization"
    r"|hour|minute|second|style|currency):)\s*$|\b(?:scope|className|download|liveState)\s=\s*$"
)
# A selector, an address, a name with hyphens, points or capitals inside: no word that people read.
NO_WORD = re.compile(r"[^\s\w]*[\w*]*[-/_.:#@\[\]=>][^\s]*|[a-z]+(?:[A-Z]\w*)+|use strict|\[.*\].*")
PLACEHOLDER = re.compile(r"%\((\w+)\)[sd]|%[sd]|\{\w*\}")
# The same texts make the same file, whoever makes it and when.
MADE = datetime(2026, 11, 27, tzinfo=UTC)

HEADER = """\
German texts of Tollgate.

Written for people who work with it: they are addressed as "Sie", sentences are short, and one word is
used for one thing. `python -m tests.texts` keeps this file; write translations into it by hand.

account        Konto                 ledger         Buch (entry: Buchung)
admin          Verwaltung (role)     limit          Grenze
allowed        erlaubt               member         Mitglied
auditor        Prüfung (role)        operator       Betreiber
booked         gebucht               owner          Inhaber
budget         Budget                period         Zeitraum
call           Aufruf                refused        abgelehnt
cost           Kosten                request        Anfrage
expires        läuft ab              revoke         widerrufen
export         Export                rotate         erneuern (a secret)
finance        Finanzen (role)       run            Lauf
grace          Übergangsfrist        secret         Geheimnis
held           zurückgelegt          service acc.   Dienstkonto
invitation     Einladung             statement      Abrechnung
key            Schlüssel             team           Team
kill switch    Notausschalter        tenant         Mandant
                                     token          Token (of a model only)
                                     upstream       Modellserver
                                     usage          Verbrauch"""


def sources() -> Iterator[Path]:
    """Every file that texts for people are in."""
    for app in APPS:
        for path in sorted((ROOT / app).rglob("*.py")):
            if "migrations" not in path.parts:
                yield path
    for suffix in ("*.html", "*.txt"):
        for path in sorted((ROOT / "templates").rglob(suffix)):
            if not OF_OPERATORS & set(path.relative_to(ROOT).parts):
                yield path


def scripts() -> Iterator[Path]:
    """Every script of the pages for people."""
    for app in APPS:
        yield from sorted((ROOT / app).rglob("static/portal/*.js"))


def found_in(path: Path, name: str) -> Iterator[Message]:
    """The texts of one file; ``name`` is where the catalog says they come from."""
    text = path.read_text(encoding="utf-8")
    # Of a template Django makes lines of Python, in which how far they are indented means nothing.
    source = text if path.suffix == ".py" else INDENTED.sub("", templatize(text, origin=name))
    for _, msgid, _, context in extract("python", BytesIO(source.encode()), KEYWORDS):
        yield Message(msgid, locations=[(name, 0)], context=context)


def wanted() -> Catalog:
    """A catalog without German of all texts that need one."""
    catalog = Catalog(locale="de", project="Tollgate", charset="utf-8", header_comment=_commented(HEADER))
    for message in _of_sources():
        catalog.add(message.id, locations=message.locations, context=message.context)
    for message in _of_allauth():
        if catalog.get(message.id, message.context) is None:
            catalog.add(message.id, locations=[("allauth", 0)], context=message.context, flags=message.flags)
    return catalog


@cache
def _of_sources() -> list[Message]:
    return [message for path in sources() for message in found_in(path, str(path.relative_to(ROOT)))]


def _of_allauth() -> Iterator[Message]:
    with (THEIRS / "locale" / "de" / "LC_MESSAGES" / "django.po").open("rb") as file:
        theirs = read_po(file, locale="de")
    for message in theirs:
        shown = any(OF_ALLAUTH.match(path) for path, _ in message.locations)
        if message.id and shown and SAYS_DU.search(" ".join(strings_of(message))):
            yield message


def updated() -> Catalog:
    """The catalog as it should be: all texts that are wanted, with the German that there is."""
    catalog = wanted()
    if CATALOG.exists():
        present = kept()
        for message in catalog:
            if message.id and (known := present.get(message.id, message.context)) is not None:
                message.string = known.string
    catalog.creation_date = catalog.revision_date = MADE
    catalog.last_translator = catalog.language_team = catalog.msgid_bugs_address = "Tollgate"
    catalog.fuzzy = False
    return catalog


def kept() -> Catalog:
    """The catalog as it is."""
    with CATALOG.open("rb") as file:
        return read_po(file, locale="de")


def strings_of(message: Message) -> tuple[str, ...]:
    """The German of a text, in all its numbers; empty ones where there is none."""
    german = message.string or ""
    return (german,) if isinstance(german, str) else tuple(german)


def as_po(catalog: Catalog) -> bytes:
    """A catalog as people edit it, in the order of its texts."""
    file = BytesIO()
    write_po(file, catalog, width=110, sort_output=True, include_lineno=False)
    return file.getvalue()


def as_mo(catalog: Catalog) -> bytes:
    """A catalog as Django reads it."""
    file = BytesIO()
    write_mo(file, catalog)
    return file.getvalue()


def troubles() -> Iterator[str]:
    """What is wrong with the German that people are shown, one sentence for each."""
    catalog, present = updated(), kept()
    for message in catalog:
        if not message.id:
            continue
        if not all(strings_of(message)):
            yield f"no German: {message.id!r}"
            continue
        originals = (message.id,) if isinstance(message.id, str) else tuple(message.id)
        for original, german in zip((*originals, originals[-1]), strings_of(message), strict=False):
            if not placeholders(german) <= placeholders(original) | placeholders(originals[-1]):
                yield f"placeholders that are not there: {german!r}"
            if german == strings_of(message)[-1] and placeholders(german) != placeholders(originals[-1]):
                yield f"other placeholders: {german!r} for {originals[-1]!r}"
            if SAYS_DU.search(german):
                yield f"says du: {german!r}"
    gone = {(m.id, m.context) for m in present if m.id} - {(m.id, m.context) for m in catalog}
    for msgid, _ in sorted(gone, key=str):
        yield f"a text that is gone: {msgid!r}"
    if CATALOG.read_bytes() != as_po(catalog):
        yield f"{CATALOG.name} is not as python -m tests.texts writes it"
    if not COMPILED.exists() or COMPILED.read_bytes() != as_mo(present):
        yield f"{COMPILED.name} is not what the catalog says"


def unmarked(source: str) -> list[str]:
    """The words of a template that are shown to people and are in no tag for translation."""
    shown, inside = [], False
    for token in Lexer(source).tokenize():
        if token.token_type is TokenType.BLOCK:
            inside = token.contents.startswith("blocktrans") or (
                inside and not token.contents.startswith("endblocktrans")
            )
        elif token.token_type is TokenType.TEXT and not inside:
            shown.append(token.contents)
    # What programs read, and what is the same in every language.
    page = re.sub(r"<(script|code|pre|svg)\b.*?</\1>|<!--.*?-->|&\w+;", " ", "".join(shown), flags=re.DOTALL)
    told = re.findall(r"\s(?:aria-label|title|placeholder|alt|label)=\"([^\"]*)\"", page)
    told += [one or other for one, other in SAID_BY_SCRIPTS.findall(page)]
    words = re.findall(r"[^\W\d_]{2,}", " ".join([re.sub(r"<[^>]*>", " ", page), *told]))
    return [word for word in words if word not in UNIVERSAL]


def written(source: str) -> list[str]:
    """The texts that a script has itself, so that they are the same in every language.

    A string is one, unless it has no word, looks like a name or a selector, or
    stands where a program reads it.
    """
    found = []
    for literal in LITERAL.finditer(source):
        text = next((text for text in literal.groups() if text is not None), "")
        said = FILLED_IN.sub(" ", text) if literal["filled"] else text
        words = set(re.findall(r"[^\W\d_]{2,}", said)) - UNIVERSAL
        if not words or NO_WORD.fullmatch(said.strip()):
            continue
        after = source[literal.end() :].lstrip()
        before = source[max(0, literal.start() - 80) : literal.start()]
        names = after.startswith("in ") or (after.startswith(":") and before.rstrip().endswith(("{", ",")))
        if not READ_BY_PROGRAMS.search(before) and not names:
            found.append(text)
    return found


def placeholders(text: str) -> set[str]:
    """What is filled in, such as ``%(tenant)s``."""
    return {found[0] for found in PLACEHOLDER.finditer(text)}


def _commented(text: str) -> str:
    return "\n".join(f"# {line}".rstrip() for line in text.splitlines())


def main(arguments: list[str]) -> int:
    if not settings.configured:
        # ``templatize`` asks for nothing but the charset.
        settings.configure()
    if "--check" not in arguments:
        CATALOG.parent.mkdir(parents=True, exist_ok=True)
        catalog = updated()
        CATALOG.write_bytes(as_po(catalog))
        COMPILED.write_bytes(as_mo(kept()))
    found = list(troubles())
    print(*found, sep="\n")  # noqa: T201 - a command
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
