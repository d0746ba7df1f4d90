"""What the management commands of all apps have in common."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from django.core.exceptions import ValidationError
from django.core.management.base import CommandError, CommandParser
from django.db import IntegrityError
from django.utils.dateparse import parse_date, parse_datetime
from django.utils.timezone import now

from tenants.model_names import canonical_setting
from tenants.models import Member, ServiceAccount, Tenant

_SPAN = re.compile(r"([1-9]\d{0,5})([mhd])")
_UNITS = {"m": "minutes", "h": "hours", "d": "days"}


# For a change that ``generations.in_force`` does not confirm.
PENDING = "Pending: Redis cannot be reached. The gateway puts it in force as soon as it can."


@contextmanager
def told_plainly() -> Iterator[None]:
    """Turn what a service or a constraint refuses into the one line that a command prints."""
    try:
        yield
    except ValidationError as exc:
        raise CommandError(" ".join(exc.messages)) from exc
    except IntegrityError as exc:  # somebody else took the name between the check and the insert
        raise CommandError(str(exc).partition("\n")[0]) from exc


def tenant_called(slug: str) -> Tenant:
    """The tenant with this slug; raises ``CommandError`` if there is none."""
    try:
        return Tenant.objects.get(slug=slug)
    except Tenant.DoesNotExist as exc:
        raise CommandError(f"There is no tenant {slug!r}.") from exc


def member_with(email: str, tenant: Tenant) -> Member:
    """The member of ``tenant`` with this e-mail address; raises ``CommandError`` if there is none."""
    try:
        return Member.objects.select_related("user").get(tenant=tenant, user__email__iexact=email)
    except Member.DoesNotExist as exc:
        raise CommandError(f"Nobody at {tenant.slug} has the e-mail address {email!r}.") from exc


def service_account_called(name: str, tenant: Tenant) -> ServiceAccount:
    """The open service account of ``tenant`` with this name; raises ``CommandError`` if there is none."""
    try:
        return ServiceAccount.objects.get(tenant=tenant, name=name, closed_at=None)
    except ServiceAccount.DoesNotExist as exc:
        raise CommandError(f"{tenant.slug} has no service account {name!r}.") from exc


def model_called(name: str) -> str:
    """The name of a model in its canonical form, empty for none; raises ``CommandError``."""
    with told_plainly():
        return canonical_setting(name)


def moment(text: str, zone: str) -> datetime:
    """The moment that ``text`` means: ``90d``, ``12h``, ``30m`` from now, or a date or time of ISO 8601.

    A date is its midnight; what names no zone is in ``zone``. Raises
    ``CommandError`` for anything else.
    """
    if span := _SPAN.fullmatch(text):
        return now() + timedelta(**{_UNITS[span[2]]: int(span[1])})
    try:
        day = parse_date(text)
        at = datetime(day.year, day.month, day.day) if day else parse_datetime(text)  # noqa: DTZ001
    except ValueError:
        at = None
    if at is None:
        raise CommandError(f"{text!r} is no moment. Examples: 90d, 12h, 2027-01-31, 2027-01-31T18:00+01:00.")
    return at if at.tzinfo else at.replace(tzinfo=ZoneInfo(zone))


def number_or(none: str, text: str) -> int | None:
    """A whole number, or None for the word ``none``, which is not 0; raises ``CommandError``."""
    if text == none:
        return None
    try:
        return int(text)
    except ValueError as exc:
        raise CommandError(f"{text!r} is no whole number, nor {none}.") from exc


def add_model_arguments(parser: CommandParser, of_key: str) -> None:
    """``--all-models`` or any number of ``--model NAME``, one excluding the other."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--all-models", action="store_true", help=f"{of_key} may call every installed model")
    which.add_argument(
        "--model",
        action="append",
        dest="models",
        metavar="NAME",
        help=f"a model that {of_key} may call, such as llama3.2:latest; may be repeated",
    )
