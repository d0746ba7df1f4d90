"""Limits in words: amounts of a unit, what the unit is called, and how often a limit is whole again."""

from __future__ import annotations

from django.utils.functional import Promise
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from budgets.money import usd_total
from tenants.figures import grouped

UNITS: dict[str, Promise] = {
    "requests": gettext_lazy("requests"),
    "tokens": gettext_lazy("tokens"),
    "output_tokens": gettext_lazy("output tokens"),
    "micro_usd": gettext_lazy("US dollars"),
    "gpu_ms": gettext_lazy("ms of GPU time"),
}
WINDOWS: dict[str, Promise] = {
    "now": gettext_lazy("at one time"),
    "minute": gettext_lazy("a minute"),
    "hour": gettext_lazy("an hour"),
    "day": gettext_lazy("a day"),
    "week": gettext_lazy("a week"),
    "month": gettext_lazy("a month"),
    "year": gettext_lazy("a year"),
    "lifetime": gettext_lazy("for good"),
}


def amount(number: int, unit: str) -> str:
    """An amount of a unit to its last digit: ``$12.34``, ``1,500``."""
    return usd_total(number) if unit == "micro_usd" else grouped(number)


def unit_name(unit: str) -> str:
    """What a unit counts: ``tokens``."""
    return str(UNITS.get(unit, unit))


def window_name(window: str) -> str:
    """How often a limit is whole again, as it stands behind an amount: ``a day``, ``every 90m``."""
    known = WINDOWS.get(window)
    return _("every %(length)s") % {"length": window} if known is None else str(known)
