"""What people are told, in words: in the language of whoever reads it, by their clock.

A notice keeps the named values of what happened; here they become a text and the
lines below it in a mail. Values are what JSON has: amounts are whole numbers of the
unit, moments are RFC 3339, and whose calls are meant is said by ``whose_calls``.
What was found by looking at the books or the audit is quoted as it was found, in English.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

from django.utils import translation
from django.utils.formats import date_format
from django.utils.functional import Promise
from django.utils.text import capfirst
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from budgets.models import Budget, Happening, KillSwitch, Notice, RateLimit, Scope
from budgets.words import amount, unit_name
from tenants.figures import grouped

Values = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Reader:
    """The language in which somebody reads, and the zone of their clock."""

    language: str
    zone: ZoneInfo


def whose_calls(row: Budget | RateLimit | KillSwitch) -> dict[str, str]:
    """Whose calls a limit counts or a switch stops: ``scope``, ``name`` and ``tenant`` as they are now."""
    if isinstance(row, KillSwitch):
        part: object = row.key or row.model or row.upstream
        tenant: object = row.tenant
    else:
        member = row.member and row.member.user
        part = row.team or member or row.key or row.model or row.upstream
        tenant = row.tenant or ""
    return {"scope": str(row.scope), "name": str(part or ""), "tenant": str(tenant)}


def limit_named(row: Budget | RateLimit, length: str = "") -> dict[str, str]:
    """A budget or rate limit as the ``budget`` of a notice keeps it.

    ``length`` is that of a budget's present period, where that is another.
    """
    return whose_calls(row) | {"unit": row.unit, "length": length or row.length}


def text_of(happening: str, values: Values, reader: Reader) -> str:
    """What happened, in a few sentences. Of the same values it is always the same."""
    with translation.override(reader.language):
        sentences = SENTENCES[Happening(happening)](_Told(values, reader.zone))
        return " ".join(sentence for sentence in sentences if sentence)


def in_words(notice: Notice, reader: Reader) -> str:
    """What a notice says; one from before notices kept values says what was stored."""
    return notice.text if notice.values is None else text_of(notice.happening, notice.values, reader)


def lines_of(notice: Notice, reader: Reader) -> list[str]:
    """The values one by one, as they stand below the text in a mail."""
    if notice.values is None:
        return []
    with translation.override(reader.language):
        told = _Told(notice.values, reader.zone)
        named: list[tuple[object, object]] = [
            (_("Tenant"), notice.facts["tenant"]),
            (_("Time"), told.at(notice.at.isoformat())),
        ]
        named += [(label, write(told, name)) for name, (label, write) in LINES.items() if told.has(name)]
        named.append((_("Notice"), notice.pk))
        details = [f"- {one}" for one in notice.values.get("details", ())]
        return [*(f"{label}: {said}" for label, said in named if said), *details]


class _Told:
    """The values of a notice as they are written in the language that is spoken here."""

    def __init__(self, values: Values, zone: ZoneInfo) -> None:
        self.values, self.zone = values, zone

    def has(self, name: str) -> bool:
        return self.values.get(name) not in (None, "")

    def amount(self, name: str) -> str:
        return amount(self.values[name], self.values["budget"]["unit"])

    def number(self, name: str) -> str:
        return grouped(self.values[name])

    def plain(self, name: str) -> str:
        return str(self.values.get(name) or "")

    def moment(self, name: str) -> str:
        return self.at(self.values[name])

    def at(self, moment: str) -> str:
        there = datetime.fromisoformat(moment).astimezone(self.zone)
        return f"{date_format(there, 'SHORT_DATETIME_FORMAT')} {there:%Z}"

    def of_budget(self, sentence: str, **named: str) -> str:
        """``sentence`` with whose budget of what it is, which nearly every one has."""
        budget = self.values["budget"]
        whose = {"whose": _whose(budget), "what": _what(budget)}
        # A sentence may begin with whose it is; one that begins with a person's name leaves that alone.
        begins = sentence.startswith(("%(whose)s", "%(what)s"))
        filled = sentence % (whose | named)
        return capfirst(filled) if begins else filled


WITHIN_TENANT: dict[str, Promise] = {
    Scope.TENANT: gettext_lazy("tenant %(tenant)s"),
    Scope.TEAM: gettext_lazy("team %(name)s of %(tenant)s"),
    Scope.MEMBER: gettext_lazy("member %(name)s of %(tenant)s"),
    Scope.KEY: gettext_lazy("key %(name)s of %(tenant)s"),
    Scope.MODEL: gettext_lazy("model %(name)s of %(tenant)s"),
    Scope.UPSTREAM: gettext_lazy("upstream %(name)s of %(tenant)s"),
    Scope.RUN: gettext_lazy("each run of %(tenant)s"),
}
OF_ALL: dict[str, Promise] = {
    Scope.PLATFORM: gettext_lazy("the platform"),
    Scope.MODEL: gettext_lazy("model %(name)s"),
    Scope.UPSTREAM: gettext_lazy("upstream %(name)s"),
}
LENGTHS: dict[str, Promise] = {
    "now": gettext_lazy("%(unit)s at one time"),
    "minute": gettext_lazy("%(unit)s per minute"),
    "hour": gettext_lazy("%(unit)s per hour"),
    "day": gettext_lazy("%(unit)s per day"),
    "week": gettext_lazy("%(unit)s per week"),
    "month": gettext_lazy("%(unit)s per month"),
    "year": gettext_lazy("%(unit)s per year"),
    "lifetime": gettext_lazy("%(unit)s for good"),
}


def _whose(of: Values) -> str:
    known = WITHIN_TENANT if of["tenant"] else OF_ALL
    return str(known[of["scope"]]) % {"name": of["name"], "tenant": of["tenant"]}


def _what(of: Values) -> str:
    unit, known = unit_name(of["unit"]), LENGTHS.get(of["length"])
    if known is not None:
        return str(known) % {"unit": unit}
    return _("%(unit)s per %(length)s") % {"unit": unit, "length": of["length"]}


def _threshold(told: _Told) -> list[str]:
    used = told.of_budget(
        _("%(share)s %% of %(whose)s's %(what)s is used: %(used)s of %(limit)s."),
        share=told.plain("threshold"),
        used=told.amount("used"),
        limit=told.amount("limit"),
    )
    if told.values["shadow"]:
        return [used, _("It is in shadow mode and refuses nothing.")]
    if told.has("empty_at"):
        return [used, _("At this pace it is empty on %(when)s.") % {"when": told.moment("empty_at")}]
    return [used]


def _exhausted(told: _Told) -> list[str]:
    refuses = told.of_budget(
        _(
            "%(whose)s's %(what)s refuses calls: of %(limit)s, %(used)s is used and %(held)s held for "
            "running calls."
        ),
        limit=told.amount("limit"),
        used=told.amount("used"),
        held=told.amount("held"),
    )
    if not told.has("period_end"):
        return [refuses]
    return [refuses, _("It is whole again at %(when)s.") % {"when": told.moment("period_end")}]


def _shadow_refused(told: _Told) -> list[str]:
    return [
        told.of_budget(
            _(
                "%(whose)s's %(what)s would have refused calls: of %(limit)s, %(used)s is used and %(held)s "
                "held for running calls."
            ),
            limit=told.amount("limit"),
            used=told.amount("used"),
            held=told.amount("held"),
        )
    ]


def _period_closed(told: _Told) -> list[str]:
    named = {
        "used": told.amount("used"),
        "begin": told.moment("period_start"),
        "end": told.moment("period_end"),
    }
    if "scope" not in told.values["budget"]:
        used = _("Budget %(name)s, which is gone: %(used)s was used from %(begin)s to %(end)s.") % (
            named | {"name": told.values["budget"]["name"]}
        )
    elif told.has("limit"):
        used = told.of_budget(
            _("%(what)s of %(whose)s: %(used)s of %(limit)s was used from %(begin)s to %(end)s."),
            limit=told.amount("limit"),
            **named,
        )
    else:
        used = told.of_budget(
            _("%(what)s of %(whose)s: %(used)s was used from %(begin)s to %(end)s."), **named
        )
    number = told.values["refused"]
    if not number:
        return [used]
    refused = (
        ngettext(
            "%(number)s call would have been refused.", "%(number)s calls would have been refused.", number
        )
        if told.values["shadow"]
        else ngettext("%(number)s call was refused.", "%(number)s calls were refused.", number)
    )
    return [used, refused % {"number": told.number("refused")}]


def _raise_ended(told: _Told) -> list[str]:
    if not told.has("limit"):
        return [told.of_budget(_("The raise of %(whose)s's %(what)s is over."))]
    return [
        told.of_budget(
            _("The raise of %(whose)s's %(what)s is over: its limit is %(limit)s now."),
            limit=told.amount("limit"),
        )
    ]


def _raise_requested(told: _Told) -> list[str]:
    return [
        told.of_budget(
            _(
                "%(who)s of %(tenant)s asks for more of %(whose)s's %(what)s: %(to)s instead of %(limit)s "
                "until %(until)s."
            ),
            who=told.plain("asked_by"),
            tenant=told.plain("tenant"),
            to=told.amount("to"),
            limit=told.amount("limit"),
            until=told.moment("until"),
        ),
        told.plain("reason"),
    ]


def _raise_decided(told: _Told) -> list[str]:
    named = {"who": told.plain("asked_by"), "actor": told.plain("decided_by")}
    if told.values["granted"]:
        decided = told.of_budget(
            _("%(actor)s has raised %(whose)s's %(what)s to %(to)s until %(until)s, as %(who)s asked."),
            to=told.amount("to"),
            until=told.moment("until"),
            **named,
        )
    else:
        decided = told.of_budget(
            _("%(actor)s has not raised %(whose)s's %(what)s, as %(who)s asked."), **named
        )
    return [decided, told.plain("answer")]


def _kill_switch_armed(told: _Told) -> list[str]:
    armed = _("A kill switch stops all calls of %(whose)s until %(until)s.") % {
        "whose": _whose(told.values["stops"]),
        "until": told.moment("until"),
    }
    return [armed, _by_whom(told), told.plain("message")]


def _kill_switch_lifted(told: _Told) -> list[str]:
    lifted = (
        _("The kill switch of %(whose)s was lifted.")
        if told.values["early"]
        else _("The kill switch of %(whose)s is over: its time has come.")
    )
    return [lifted % {"whose": _whose(told.values["stops"])}, _by_whom(told)]


def _by_whom(told: _Told) -> str:
    return f"{told.plain('by')}: {told.plain('reason')}" if told.has("by") else ""


def _key_expires(told: _Told) -> list[str]:
    days = told.values["days_before"]
    expires = ngettext(
        "Key %(label)s of %(tenant)s expires on %(when)s, in less than a day.",
        "Key %(label)s of %(tenant)s expires on %(when)s, in less than %(days)s days.",
        days,
    ) % {
        "label": told.plain("label"),
        "tenant": told.plain("tenant"),
        "when": told.moment("expires_at"),
        "days": days,
    }
    return [
        expires,
        _("Calls with it are refused from then on. Give it a later end, or issue another one."),
    ]


def _books_disagree(told: _Told) -> list[str]:
    return [_("The books do not agree."), told.plain("first"), _one_of(told)]


def _one_of(told: _Told) -> str:
    return (
        _("That is one of %(found)s.") % {"found": told.number("found")} if told.values["found"] > 1 else ""
    )


def _record_parked(told: _Told) -> list[str]:
    parked = _("The usage record %(record)s could not be booked and is parked: %(reason)s.") % {
        "record": told.plain("record"),
        "reason": told.plain("reason"),
    }
    others = told.values["count"] - 1
    more = ngettext("%(number)s more was.", "%(number)s more were.", others) % {"number": grouped(others)}
    return [
        parked,
        more if others else "",
        _("What such a call used is on its counters and in no other book until somebody corrects that."),
    ]


def _audit_broken(told: _Told) -> list[str]:
    return [
        _("The audit is not as it was written: %(trouble)s.") % {"trouble": told.plain("first")},
        _one_of(told),
        _("“manage.py verify_audit” looks at all of it."),
    ]


def _test(told: _Told) -> list[str]:
    return [_("%(who)s tries whether notices of Tollgate arrive here. They do.") % {"who": told.plain("who")}]


SENTENCES: dict[Happening, Callable[[_Told], list[str]]] = {
    Happening.THRESHOLD: _threshold,
    Happening.EXHAUSTED: _exhausted,
    Happening.SHADOW_REFUSED: _shadow_refused,
    Happening.PERIOD_CLOSED: _period_closed,
    Happening.RAISE_ENDED: _raise_ended,
    Happening.RAISE_REQUESTED: _raise_requested,
    Happening.RAISE_DECIDED: _raise_decided,
    Happening.KILL_SWITCH_ARMED: _kill_switch_armed,
    Happening.KILL_SWITCH_LIFTED: _kill_switch_lifted,
    Happening.KEY_EXPIRES: _key_expires,
    Happening.BOOKS_DISAGREE: _books_disagree,
    Happening.RECORD_PARKED: _record_parked,
    Happening.AUDIT_BROKEN: _audit_broken,
    Happening.TEST: _test,
}
# Below the text, in this order; others are in it already.
LINES: dict[str, tuple[Promise, Callable[[_Told, str], str]]] = {
    "limit": (gettext_lazy("Limit"), _Told.amount),
    "used": (gettext_lazy("Used"), _Told.amount),
    "held": (gettext_lazy("Held"), _Told.amount),
    "refused": (gettext_lazy("Refused calls"), _Told.number),
    "period_start": (gettext_lazy("Period from"), _Told.moment),
    "period_end": (gettext_lazy("Period until"), _Told.moment),
    "to": (gettext_lazy("New limit"), _Told.amount),
    "expires_at": (gettext_lazy("Expires"), _Told.moment),
    "until": (gettext_lazy("Until"), _Told.moment),
    "holder": (gettext_lazy("Member"), _Told.plain),
    "found": (gettext_lazy("Found"), _Told.number),
    "page": (gettext_lazy("Page"), _Told.plain),
}
