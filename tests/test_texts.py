"""Every text that people read has German, and pages in German write numbers and days as Germans do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.test import Client
from django.utils import translation

from budgets.money import usd_total
from budgets.usage import in_percent
from budgets.words import amount
from tenants.figures import grouped
from tenants.models import Tenant
from tests import ledgers, texts
from tests.ledgers import book
from tests.people import a_browser, a_person

pytestmark = pytest.mark.django_db


def test_every_text_has_its_german_and_the_catalog_is_as_it_is_written() -> None:
    assert list(texts.troubles()) == []


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        pytest.param('msgstr "Verbrauch"', 'msgstr ""', "no German: 'Usage'", id="no German"),
        pytest.param('msgstr "Tage gelten nach %(zone)s."', 'msgstr "Tage gelten nach %(zoen)s."',
                     "placeholders that are not there", id="another placeholder"),
        pytest.param('msgstr "Tage gelten nach %(zone)s."', 'msgstr "Tage gelten."',
                     "other placeholders", id="a placeholder less"),
        pytest.param('msgstr "Ihr Konto"', 'msgstr "Dein Konto"', "says du", id="du"),
        pytest.param('msgid "Your account"', 'msgid "Your old account"', "a text that is gone", id="gone"),
        pytest.param('msgstr "Ihr Konto"', 'msgstr "Das Konto"', "is not what the catalog says",
                     id="not compiled"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_catalog_is_told(
    before: str, after: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog = texts.CATALOG.read_text()
    assert before in catalog
    (tmp_path / "django.po").write_text(catalog.replace(before, after))
    (tmp_path / "django.mo").write_bytes(texts.COMPILED.read_bytes())
    monkeypatch.setattr(texts, "CATALOG", tmp_path / "django.po")
    monkeypatch.setattr(texts, "COMPILED", tmp_path / "django.mo")

    assert any(told in trouble for trouble in texts.troubles())


@pytest.mark.parametrize(
    ("name", "source", "found"),
    [
        ("a.py", "x = _('One')\ny = gettext_lazy('Two')\n", ["One", "Two"]),
        ("a.py", "ngettext('%(n)s key', '%(n)s keys', 2)\n", [("%(n)s key", "%(n)s keys")]),
        ("a.html", "<p>\n    {% translate 'One' %}\n  {{ x|default:_('none') }}\n", ["One", "none"]),
        ("a.html", "{% blocktranslate with a=b %}One {{ a }}{% endblocktranslate %}", ["One %(a)s"]),
        ("a.txt", "It isn't\n  {% translate 'One' %}\n", ["One"]),
        ("a.py", "print('not marked')\n", []),
    ],
)
def test_texts_are_found_in_python_and_in_templates(
    name: str, source: str, found: list[object], tmp_path: Path
) -> None:
    (tmp_path / name).write_text(source)

    assert [message.id for message in texts.found_in(tmp_path / name, name)] == found


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("<p>{% translate 'Marked' %} <b>not</b></p>", ["not"]),
        ('<p aria-label="{% translate "Marked" %}">{{ value }}</p>', []),
        ('<p aria-label="Not marked">1.5 USD</p>', ["Not", "marked"]),
        ("{% blocktranslate %}Marked{% endblocktranslate %} {# nothing #} <code>GET</code>", []),
        ('<p data-says-lost="Lost" data-done="Not marked">', ["Lost", "Not", "marked"]),
        ('<p data-says-lost="{% translate "Lost" %}" data-live="/live/{{ id }}/" data-shown-once>', []),
    ],
)
def test_words_that_are_not_marked_are_seen(source: str, words: list[str]) -> None:
    assert texts.unmarked(source) == words


@pytest.mark.parametrize(
    "path",
    [path for path in texts.sources() if path.suffix in (".html", ".txt")],
    ids=lambda path: str(path.relative_to(texts.ROOT)),
)
def test_no_word_of_a_page_is_left_unmarked(path: Path) -> None:
    assert texts.unmarked(path.read_text()) == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ('state.textContent = "Copied";', ["Copied"]),
        ("state.append('copied');", ["copied"]),
        ('tell("tokens", 7);', ["tokens"]),
        ('// not "Copied"\nstate.textContent = `${seconds} seconds ago`;', ["${seconds} seconds ago"]),
        ('place.setAttribute("title", "Copied");', ["Copied"]),
        ('alert(failed ? "It failed" : texts.done);', ["It failed"]),
        ("state.textContent = state.dataset.done;", []),
        ('document.querySelector("[data-told] > p").textContent = `${seconds} s`;', []),
        ('fetch("/v1/chat/completions", { method: "POST", headers: { "Content-Type": "text/html" } });', []),
        ('if (error.name === "AbortError" || "parts" in message) x.addEventListener("click", go);', []),
        ('const told = /^(retry-after|"it")/i; /* "Copied" */ "use strict";', []),
    ],
)
def test_texts_that_a_script_has_itself_are_found(source: str, found: list[str]) -> None:
    assert texts.written(source) == found


@pytest.mark.parametrize("path", list(texts.scripts()), ids=lambda path: path.name)
def test_a_script_says_only_what_its_page_gives_it(path: Path) -> None:
    assert texts.written(path.read_text()) == []


def test_the_scripts_are_found_in_which_texts_might_be() -> None:
    assert {"keys.js", "live.js", "playground.js"} <= {path.name for path in texts.scripts()}


@pytest.mark.parametrize(
    ("shown", "english", "german"),
    [
        (lambda: grouped(1234567), "1,234,567", "1.234.567"),
        (lambda: grouped("-1234.500000"), "-1,234.500000", "-1.234,500000"),
        (lambda: grouped(0), "0", "0"),
        (lambda: in_percent(125), "12.5 %", "12,5 %"),
        (lambda: usd_total(1_234_560_000), "$1,234.56", "1.234,56 $"),
        (lambda: usd_total(-1), "$-0.000001", "-0,000001 $"),
        (lambda: amount(1_234_567_890, "micro_usd"), "$1,234.567890", "1.234,567890 $"),
        (lambda: amount(12_340_000, "micro_usd"), "$12.34", "12,34 $"),
        (lambda: amount(1500, "tokens"), "1,500", "1.500"),
    ],
)
def test_numbers_are_those_of_the_language(shown, english, german):
    with translation.override("en"):
        assert shown() == english
    with translation.override("de"):
        assert shown() == german


@pytest.fixture
def browser(acme: Tenant) -> Client:
    book(ledgers.of(acme, input_tokens=1_234_567, cost_micro_usd=1_234_560_001))
    return a_browser(a_person("owner", acme))


DAYS = "?from=2026-03-01&before=2026-04-01"


def test_a_page_in_german_says_the_same_in_german(browser: Client) -> None:
    page = browser.get(f"/portal/acme/usage/{DAYS}", headers={"Accept-Language": "de"}).content.decode()

    assert '<html lang="de">' in page
    for text in ("1.234.567", "1.234,560001", "Tage ab 01.03.2026 bis vor 01.04.2026", "Summe", "Verbrauch"):
        assert text in page
    # What browsers and programs read is the same in every language.
    assert 'value="2026-03-01"' in page
    assert '<option value="key" selected>Schlüssel</option>' in page


async def whole(answer: Any) -> bytes:
    return b"".join([piece async for piece in answer.streaming_content])


@pytest.mark.django_db(transaction=True)
def test_what_programs_read_is_the_same_in_every_language(browser: Client) -> None:
    order = {
        "from_day": "2026-03-01", "before_day": "2026-04-01", "profile": "requests", "layout": "csv",
        "download": "1",
    }  # fmt: skip

    answers = [
        browser.post("/portal/acme/exports/", order, headers={"Accept-Language": language})
        for language in ("en", "de")
    ]
    files = [async_to_sync(whole)(answer) for answer in answers]

    assert files[0] == files[1]
    assert b"1234567" in files[0]
