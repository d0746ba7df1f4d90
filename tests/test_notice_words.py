"""Notices in the language and by the clock of whoever reads them, as they come by mail and by webhook."""

from __future__ import annotations

import json
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from django.utils import translation

from budgets import deliveries, services
from budgets.models import Delivery, Happening, Notice, every_happening
from budgets.notice_words import LINES, SENTENCES, Reader, in_words, text_of
from budgets.notices import deliver_to_people, tell, try_out
from tenants.models import Tenant, User
from tenants.services import change_tenant, create_tenant, create_user
from tests.people import a_browser, a_person
from tests.receivers import HttpReceiver, Mail, MailServer

pytestmark = pytest.mark.django_db(transaction=True)

BERLIN = ZoneInfo("Europe/Berlin")
TOKENS = {"scope": "tenant", "name": "", "tenant": "acme", "unit": "tokens", "length": "month"}
DOLLARS = {"scope": "key", "name": "nightly", "tenant": "acme", "unit": "micro_usd", "length": "90m"}
OF_MIA = {"scope": "member", "name": "mia", "tenant": "acme", "unit": "requests", "length": "day"}
STANDING: dict[str, Any] = {
    "shadow": False, "limit": 5_000_000, "used": 4_012_000, "held": 8192, "refused": 1234, "empty_at": None,
    "period_start": "2026-10-31T23:00:00+00:00", "period_end": "2026-11-30T23:00:00+00:00",
}  # fmt: skip
EMPTY_AT = "2026-11-29T07:12:44+00:00"

# What happened; what a mail says of it in English, by the clock of Tokyo, and in German, by that of Berlin.
CASES: list[tuple[str, str, dict[str, Any], str, str]] = [
    (
        "a share",
        "threshold",
        {"budget": TOKENS, "threshold": 80} | STANDING | {"empty_at": EMPTY_AT},
        (
            "80 % of tenant acme's tokens per month is used: 4,012,000 of 5,000,000. At this pace it "
            "is empty on 2026-11-29 16:12 JST."
        ),
        (
            "Mandant acme: 80 % der Grenze für Token pro Monat sind verbraucht, 4.012.000 von "
            "5.000.000. Bei diesem Tempo ist das Budget am 29.11.2026 08:12 CET aufgebraucht."
        ),
    ),
    (
        "a share of money, in shadow mode",
        "threshold",
        {"budget": DOLLARS, "threshold": 95} | STANDING | {"shadow": True, "used": 4_750_001},
        (
            "95 % of key nightly of acme's US dollars per 90m is used: $4.750001 of $5.00. It is in "
            "shadow mode and refuses nothing."
        ),
        (
            "Schlüssel nightly von acme: 95 % der Grenze für US-Dollar je 90m sind verbraucht, "
            "4,750001 $ von 5,00 $. Die Grenze zählt nur und lehnt nichts ab."
        ),
    ),
    (
        "a refusal",
        "exhausted",
        {"budget": TOKENS} | STANDING,
        (
            "Tenant acme's tokens per month refuses calls: of 5,000,000, 4,012,000 is used and 8,192 "
            "held for running calls. It is whole again at 2026-12-01 08:00 JST."
        ),
        (
            "Mandant acme: Die Grenze für Token pro Monat lehnt Aufrufe ab. Von 5.000.000 sind "
            "4.012.000 verbraucht und 8.192 für laufende Aufrufe zurückgelegt. Am 01.12.2026 00:00 CET "
            "steht wieder alles zur Verfügung."
        ),
    ),
    (
        "a refusal for good",
        "exhausted",
        {"budget": TOKENS | {"length": "lifetime"}} | STANDING | {"period_end": None},
        (
            "Tenant acme's tokens for good refuses calls: of 5,000,000, 4,012,000 is used and 8,192 "
            "held for running calls."
        ),
        (
            "Mandant acme: Die Grenze für Token auf Dauer lehnt Aufrufe ab. Von 5.000.000 sind "
            "4.012.000 verbraucht und 8.192 für laufende Aufrufe zurückgelegt."
        ),
    ),
    (
        "a refusal that was none",
        "shadow_refused",
        {"budget": OF_MIA} | STANDING | {"shadow": True},
        (
            "Member mia of acme's requests per day would have refused calls: of 5,000,000, 4,012,000 "
            "is used and 8,192 held for running calls."
        ),
        (
            "Mitglied mia von acme: Die Grenze für Anfragen pro Tag zählt nur, sonst hätte sie Aufrufe "
            "abgelehnt. Von 5.000.000 sind 4.012.000 verbraucht und 8.192 für laufende Aufrufe "
            "zurückgelegt."
        ),
    ),
    (
        "a closed period",
        "period_closed",
        {"budget": TOKENS} | STANDING,
        (
            "Tokens per month of tenant acme: 4,012,000 of 5,000,000 was used from 2026-11-01 08:00 "
            "JST to 2026-12-01 08:00 JST. 1,234 calls were refused."
        ),
        (
            "Mandant acme, Token pro Monat: Vom 01.11.2026 00:00 CET bis 01.12.2026 00:00 CET wurden "
            "4.012.000 von 5.000.000 verbraucht. 1.234 Aufrufe wurden abgelehnt."
        ),
    ),
    (
        "a closed period without a limit",
        "period_closed",
        {"budget": TOKENS} | STANDING | {"limit": None, "shadow": True, "refused": 1},
        (
            "Tokens per month of tenant acme: 4,012,000 was used from 2026-11-01 08:00 JST to "
            "2026-12-01 08:00 JST. 1 call would have been refused."
        ),
        (
            "Mandant acme, Token pro Monat: Vom 01.11.2026 00:00 CET bis 01.12.2026 00:00 CET wurden "
            "4.012.000 verbraucht. 1 Aufruf wäre abgelehnt worden."
        ),
    ),
    (
        "a closed period of a budget that is gone",
        "period_closed",
        {"budget": {"name": "tokens per day of tenant acme", "unit": ""}} | STANDING | {"refused": 0},
        (
            "Budget tokens per day of tenant acme, which is gone: 4,012,000 was used from 2026-11-01 "
            "08:00 JST to 2026-12-01 08:00 JST."
        ),
        (
            "Budget tokens per day of tenant acme, das es nicht mehr gibt: Vom 01.11.2026 00:00 CET "
            "bis 01.12.2026 00:00 CET wurden 4.012.000 verbraucht."
        ),
    ),
    (
        "the end of a raise",
        "raise_ended",
        {"budget": TOKENS, "limit": 5_000_000},
        "The raise of tenant acme's tokens per month is over: its limit is 5,000,000 now.",
        (
            "Mandant acme: Die Erhöhung der Grenze für Token pro Monat ist vorbei, sie liegt jetzt bei "
            "5.000.000."
        ),
    ),
    (
        "the end of a raise, without a limit",
        "raise_ended",
        {"budget": TOKENS, "limit": None},
        "The raise of tenant acme's tokens per month is over.",
        "Mandant acme: Die Erhöhung der Grenze für Token pro Monat ist vorbei.",
    ),
    (
        "a request for more",
        "raise_requested",
        {
            "budget": OF_MIA,
            "tenant": "acme",
            "asked_by": "mia",
            "limit": 1000,
            "to": 2000,
            "until": EMPTY_AT,
            "reason": "The deadline.",
            "page": "https://t.example/raises/1/",
        },
        (
            "mia of acme asks for more of member mia of acme's requests per day: 2,000 instead of "
            "1,000 until 2026-11-29 16:12 JST. The deadline."
        ),
        (
            "mia von acme bittet um mehr Anfragen pro Tag (Mitglied mia von acme): 2.000 statt 1.000 "
            "bis 29.11.2026 08:12 CET. The deadline."
        ),
    ),
    (
        "a yes",
        "raise_decided",
        {
            "budget": OF_MIA,
            "tenant": "acme",
            "asked_by": "mia",
            "decided_by": "olga",
            "granted": True,
            "to": 2000,
            "until": EMPTY_AT,
            "answer": "Good luck.",
        },
        (
            "olga has raised member mia of acme's requests per day to 2,000 until 2026-11-29 16:12 "
            "JST, as mia asked. Good luck."
        ),
        (
            "olga hat die Grenze für Anfragen pro Tag (Mitglied mia von acme) bis 29.11.2026 08:12 CET "
            "auf 2.000 erhöht, worum mia gebeten hatte. Good luck."
        ),
    ),
    (
        "a no",
        "raise_decided",
        {
            "budget": OF_MIA,
            "tenant": "acme",
            "asked_by": "mia",
            "decided_by": "olga",
            "granted": False,
            "answer": "Not this week.",
        },
        "olga has not raised member mia of acme's requests per day, as mia asked. Not this week.",
        (
            "olga hat die Grenze für Anfragen pro Tag (Mitglied mia von acme) nicht erhöht, worum mia "
            "gebeten hatte. Not this week."
        ),
    ),
    (
        "a kill switch",
        "kill_switch_armed",
        {
            "stops": {"scope": "tenant", "name": "", "tenant": "acme"},
            "until": EMPTY_AT,
            "message": "Call us.",
        },
        "A kill switch stops all calls of tenant acme until 2026-11-29 16:12 JST. Call us.",
        "Ein Notausschalter hält bis 29.11.2026 08:12 CET alle Aufrufe an: Mandant acme. Call us.",
    ),
    (
        "a kill switch of the platform",
        "kill_switch_armed",
        {
            "stops": {"scope": "platform", "name": "", "tenant": ""},
            "until": EMPTY_AT,
            "by": "root",
            "reason": "a leak",
        },
        "A kill switch stops all calls of the platform until 2026-11-29 16:12 JST. root: a leak",
        (
            "Ein Notausschalter hält bis 29.11.2026 08:12 CET alle Aufrufe an: die ganze Plattform. "
            "root: a leak"
        ),
    ),
    (
        "a kill switch that was lifted",
        "kill_switch_lifted",
        {"stops": {"scope": "model", "name": "tiny:1b", "tenant": ""}, "early": True},
        "The kill switch of model tiny:1b was lifted.",
        "Der Notausschalter wurde aufgehoben: Modell tiny:1b.",
    ),
    (
        "a kill switch whose time has come",
        "kill_switch_lifted",
        {"stops": {"scope": "upstream", "name": "gpu-1", "tenant": ""}, "early": False},
        "The kill switch of upstream gpu-1 is over: its time has come.",
        "Der Notausschalter ist abgelaufen: Modellserver gpu-1.",
    ),
    (
        "a key with a week left",
        "key_expires",
        {"label": "nightly", "tenant": "ACME", "expires_at": EMPTY_AT, "days_before": 7, "holder": "mia"},
        (
            "Key nightly of ACME expires on 2026-11-29 16:12 JST, in less than 7 days. Calls with it "
            "are refused from then on. Give it a later end, or issue another one."
        ),
        (
            "Der Schlüssel nightly von ACME läuft am 29.11.2026 08:12 CET ab, in weniger als 7 Tagen. "
            "Von da an werden Aufrufe mit ihm abgelehnt. Geben Sie ihm ein späteres Ende, oder stellen "
            "Sie einen anderen aus."
        ),
    ),
    (
        "a key with a day left",
        "key_expires",
        {"label": "nightly", "tenant": "ACME", "expires_at": EMPTY_AT, "days_before": 1, "holder": ""},
        (
            "Key nightly of ACME expires on 2026-11-29 16:12 JST, in less than a day. Calls with it "
            "are refused from then on. Give it a later end, or issue another one."
        ),
        (
            "Der Schlüssel nightly von ACME läuft am 29.11.2026 08:12 CET ab, in weniger als einem "
            "Tag. Von da an werden Aufrufe mit ihm abgelehnt. Geben Sie ihm ein späteres Ende, oder "
            "stellen Sie einen anderen aus."
        ),
    ),
    (
        "books that disagree",
        "books_disagree",
        {
            "first": "The ledger has 2 entries too many.",
            "found": 1200,
            "details": ["The ledger has 2 too many."],
        },
        "The books do not agree. The ledger has 2 entries too many. That is one of 1,200.",
        (
            "Die Bücher stimmen nicht überein. The ledger has 2 entries too many. Das ist einer von "
            "1.200 Befunden."
        ),
    ),
    (
        "a parked record",
        "record_parked",
        {"record": "1-0", "reason": "no such tenant", "count": 2, "details": []},
        (
            "The usage record 1-0 could not be booked and is parked: no such tenant. 1 more was. What "
            "such a call used is on its counters and in no other book until somebody corrects that."
        ),
        (
            "Der Verbrauchseintrag 1-0 konnte nicht gebucht werden und liegt beiseite: no such tenant. "
            "1 weiterer ebenso. Was ein solcher Aufruf verbraucht hat, steht auf seinen Zählern und in "
            "keinem anderen Buch, bis jemand das berichtigt."
        ),
    ),
    (
        "a broken audit",
        "audit_broken",
        {"first": "platform at 3: the event is gone", "found": 1, "details": []},
        (
            "The audit is not as it was written: platform at 3: the event is gone. “manage.py "
            "verify_audit” looks at all of it."
        ),
        (
            "Das Protokoll ist nicht so, wie es geschrieben wurde: platform at 3: the event is gone. "
            "„manage.py verify_audit“ sieht alles durch."
        ),
    ),
    (
        "a test",
        "test",
        {"who": "olga"},
        "olga tries whether notices of Tollgate arrive here. They do.",
        "olga probiert aus, ob Meldungen von Tollgate hier ankommen. Sie kommen an.",
    ),
]


@pytest.fixture
def acme() -> Tenant:
    return create_tenant(slug="acme", name="ACME", actor="test", time_zone="Europe/Berlin", language="de")


def a_reader(name: str, **chosen: str) -> User:
    user = create_user(username=name, email=f"{name}@example.org", actor="test")
    User.objects.filter(pk=user.pk).update(**chosen)
    return User.objects.get(pk=user.pk)


def body_of(mail: Mail) -> str:
    body = mail.message.get_payload(decode=True)
    assert isinstance(body, bytes)
    return body.decode().replace("\r\n", "\n")


def by_address(server: MailServer) -> dict[str, Mail]:
    return {mail.recipients[0]: mail for mail in server.mails}


def happens(happening: str, values: dict[str, Any], tenant: Tenant) -> Notice:
    notice = tell(
        happening=happening, subject="it", values=values, facts={}, tenant_id=tenant.pk, tenant="acme"
    )
    assert notice is not None
    return notice


@pytest.mark.parametrize(
    ("happening", "values", "english", "german"),
    [case[1:] for case in CASES],
    ids=[case[0] for case in CASES],
)
def test_a_mail_comes_in_the_language_and_by_the_clock_of_its_reader(
    happening: str, values: dict[str, Any], english: str, german: str, acme: Tenant, mail: MailServer
) -> None:
    yuki = a_reader("yuki", language="en", time_zone="Asia/Tokyo")
    # Who has chosen neither is written to as their tenant says.
    kurt = a_reader("kurt")
    deliver_to_people(happens(happening, values, acme), [yuki, kurt])

    assert deliveries.deliver() == 2

    told = by_address(mail)
    for address, text, language in (("yuki@example.org", english, "en"), ("kurt@example.org", german, "de")):
        body = body_of(told[address])
        assert body.partition("\n\n")[0] == text
        subject = " ".join(str(told[address].message["Subject"]).split())
        assert subject == f"[Tollgate] {text[:150]}".strip()
        assert told[address].message["Content-Language"] == language


def test_there_is_a_case_of_everything_that_may_happen() -> None:
    assert {case[1] for case in CASES} == set(SENTENCES) == {*every_happening(), Happening.TEST}
    assert set(LINES) <= {name for case in CASES for name in case[2]}


def test_below_the_text_stand_the_figures_as_their_reader_writes_them(acme: Tenant, mail: MailServer) -> None:
    values = {"budget": TOKENS, "threshold": 80} | STANDING | {"empty_at": EMPTY_AT}
    notice = happens("threshold", values, acme)
    deliver_to_people(notice, [a_reader("kurt")])

    deliveries.deliver()

    lines = body_of(mail.mails[0]).split("\n\n")[1].split("\n")
    assert lines[0] == "Mandant: acme"
    assert lines[2:] == [
        "Grenze: 5.000.000",
        "Verbraucht: 4.012.000",
        "Zurückgelegt: 8.192",
        "Abgelehnte Aufrufe: 1.234",
        "Zeitraum ab: 01.11.2026 00:00 CET",
        "Zeitraum bis: 01.12.2026 00:00 CET",
        f"Meldung: {notice.pk}",
        "",
    ]


@pytest.mark.parametrize(
    ("address", "chosen", "starts"),
    [
        pytest.param("ops@example.org", None, "Mandant acme: 80 %", id="nobody's: as the tenant"),
        pytest.param(
            "KURT@example.org", {"language": "en"}, "80 % of tenant acme's", id="somebody's: as they chose"
        ),
        pytest.param("kurt@example.org", {}, "Mandant acme: 80 %", id="of somebody who chose nothing"),
    ],
)
def test_an_address_that_is_told_reads_as_whoever_it_belongs_to(
    address: str, chosen: dict[str, str] | None, starts: str, acme: Tenant, mail: MailServer
) -> None:
    if chosen is not None:
        a_reader("kurt", **chosen)
    services.add_recipient(kind="email", address=address, tenant=acme, actor="test")
    happens("threshold", {"budget": TOKENS, "threshold": 80} | STANDING, acme)

    deliveries.deliver()

    assert body_of(mail.mails[0]).startswith(starts)


def test_what_belongs_to_no_tenant_is_told_in_english_and_utc(mail: MailServer) -> None:
    services.add_recipient(kind="email", address="ops@example.org", actor="test")
    stops = {"scope": "platform", "name": "", "tenant": ""}
    tell(happening="kill_switch_armed", subject="1", values={"stops": stops, "until": EMPTY_AT}, facts={})

    deliveries.deliver()

    text = body_of(mail.mails[0]).partition("\n\n")[0]
    assert text == "A kill switch stops all calls of the platform until 2026-11-29 07:12 UTC."


def test_a_webhook_is_english_and_the_same_in_each_attempt_whatever_language_is_chosen_meanwhile(
    acme: Tenant, http: HttpReceiver
) -> None:
    services.add_recipient(kind="webhook", address=http.url, tenant=acme, actor="test")
    http.statuses = [500, 200]
    with translation.override("de"):
        happens("threshold", {"budget": TOKENS, "threshold": 80} | STANDING, acme)
        deliveries.deliver()
        change_tenant(tenant=acme, language="en", time_zone="Asia/Tokyo", actor="test")
        Delivery.objects.update(next_at="2026-01-01T00:00:00Z")
        deliveries.deliver()

    first, second = http.received
    assert first.body == second.body
    text = json.loads(first.body)["text"]
    assert text == "80 % of tenant acme's tokens per month is used: 4,012,000 of 5,000,000."


def test_a_notice_from_before_there_were_values_says_what_was_stored(acme: Tenant, mail: MailServer) -> None:
    notice = happens("threshold", {"budget": TOKENS, "threshold": 80} | STANDING, acme)
    Notice.objects.update(values=None, text="As it was told then.")
    deliver_to_people(notice, [a_reader("kurt", language="de")])

    deliveries.deliver()

    assert in_words(Notice.objects.get(), Reader("de", BERLIN)) == "As it was told then."
    assert body_of(mail.mails[0]).strip() == "As it was told then."


def test_whoever_is_put_into_words_leaves_the_language_as_it_was() -> None:
    with translation.override("en"):
        text_of("test", {"who": "olga"}, Reader("de", BERLIN))

        assert translation.get_language() == "en"


def test_the_limits_page_tells_in_german_what_did_not_arrive_and_why(
    acme: Tenant, http: HttpReceiver
) -> None:
    recipient = services.add_recipient(kind="webhook", address=http.url, tenant=acme, actor="test")
    http.statuses = [503]
    happens("threshold", {"budget": TOKENS, "threshold": 80} | STANDING, acme)
    deliveries.deliver()
    deliveries.deliver_now(try_out(recipient, "olga"))
    Delivery.objects.filter(notice__happening="test").update(
        attempts=[{"at": "", "status": 1, "error": "as then"}]
    )

    page = (
        a_browser(a_person("owner", acme)).get("/portal/acme/limits/", headers={"Accept-Language": "de"}).text
    )

    assert (
        "Mandant acme: 80 % der Grenze für Token pro Monat sind verbraucht, 4.012.000 von 5.000.000." in page
    )
    assert "Der Empfänger hat mit 503 geantwortet" in page
    assert "olga probiert aus, ob Meldungen" in page
    assert "as then" in page
