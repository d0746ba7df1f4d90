"""What is filled in of a key: one set of fields for a new key and for one that is there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

from django import forms
from django.core.exceptions import ValidationError
from django.utils.functional import Promise, cached_property
from django.utils.timezone import now
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from budgets.key_limits import MEASURES
from budgets.limited_keys import OwnLimit, Row, counts_of, parents_of, told
from budgets.models import LARGEST, Budget, Measure, PeriodKind, Unit
from budgets.words import window_name
from keys.endpoints import DOORS
from keys.models import ApiKey
from keys.networks import network_in
from tenants.access import Access, Reach
from tenants.forms import told_in_every_zone
from tenants.models import ServiceAccount

ME, THE_TENANT, ACCOUNT = "me", "tenant", "service:"
OF_TENANT, THESE = "tenant", "these"
DAYS = (7, 30, 90, 365)
NEVER, LONGEST, ON_A_DAY = "never", "longest", "day"
LIMIT_PERIODS = (PeriodKind.HOUR, PeriodKind.DAY, PeriodKind.WEEK, PeriodKind.MONTH, PeriodKind.LIFETIME)
NEEDS_PRICES = gettext_lazy("Calls of models that have no price are refused then.")
# What a key may have limits of.
LIMITS: dict[str, Promise] = {
    Unit.TOKENS: gettext_lazy("Tokens, in and out"),
    Unit.MICRO_USD: gettext_lazy("US dollars"),
    Unit.REQUESTS: gettext_lazy("Requests"),
    Measure.REQUESTS_PER_MINUTE: gettext_lazy("Requests a minute"),
    Measure.TOKENS_PER_MINUTE: gettext_lazy("Tokens a minute"),
    Measure.CONCURRENT_REQUESTS: gettext_lazy("Requests at one time"),
}
# And what it may be given limits of elsewhere; they are shown, and changed here, where there are any.
OTHER_LIMITS: dict[str, Promise] = {
    Unit.OUTPUT_TOKENS: gettext_lazy("Tokens out"),
    Unit.GPU_MS: gettext_lazy("Milliseconds of GPU time"),
}


@dataclass(frozen=True, slots=True)
class Slot:
    """A place for one limit: ``row`` is what the key has of what it ``counts``, None for nothing yet."""

    name: str
    counts: str
    row: Row | None = None

    @property
    def places(self) -> int:
        """How many decimal places people see of it."""
        return MEASURES[self.counts].places if self.counts in MEASURES else 0

    @property
    def label(self) -> str:
        return str(LIMITS.get(self.counts) or OTHER_LIMITS[self.counts])

    @property
    def has_period(self) -> bool:
        return self.counts in Unit.values

    @property
    def period(self) -> str:
        return self.row.length if isinstance(self.row, Budget) else PeriodKind.MONTH


@dataclass(frozen=True, slots=True)
class LimitFields:
    """The fields of a limit, and in words those that hold for the key anyway; ``note``: what else to know."""

    limit: Any
    period: Any
    parents: list[str]
    note: str = ""


class KeyForm(forms.Form):
    """What a key is; ``models`` are those that may be chosen, ``slots`` the limits that it may have."""

    label = forms.CharField(
        label=gettext_lazy("Name"),
        max_length=80,
        help_text=gettext_lazy("What the key is for, such as nightly-report."),
    )
    scopes = forms.MultipleChoiceField(
        label=gettext_lazy("May be used for"),
        choices=[(scope, f"{scope}: {', '.join(doors)}") for scope, doors in DOORS.items()],
        initial=list(DOORS),
        widget=forms.CheckboxSelectMultiple,
        error_messages={"required": gettext_lazy("Choose one at least.")},
    )
    which_models = forms.ChoiceField(
        label=gettext_lazy("Models"),
        choices=[
            (OF_TENANT, gettext_lazy("Those of the tenant, later ones too")),
            (THESE, gettext_lazy("Only these:")),
        ],
        initial=OF_TENANT,
        widget=forms.RadioSelect,
    )
    models = forms.MultipleChoiceField(
        label=gettext_lazy("Only these models"), required=False, widget=forms.CheckboxSelectMultiple
    )
    address_blocks = forms.CharField(
        label=gettext_lazy("Only from these networks"),
        required=False,
        max_length=4000,
        widget=forms.Textarea({"rows": 2}),
        help_text=gettext_lazy("Such as 192.0.2.0/24, one a line. Empty: from anywhere."),
    )
    expires = forms.ChoiceField(label=gettext_lazy("Expires"))
    expires_on = forms.DateField(
        label=gettext_lazy("On the day"),
        required=False,
        widget=forms.DateInput({"type": "date"}),
        validators=[told_in_every_zone],
        help_text=gettext_lazy("At its first moment. Only for “on a day”."),
    )

    def __init__(
        self,
        access: Access,
        models: Sequence[str],
        slots: Sequence[Slot],
        ends: list[tuple[str, str]],
        *args: Any,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._access, self._slots = access, slots
        fields: dict[str, Any] = self.fields
        fields["models"].choices = [(name, name) for name in models]
        fields["expires"].choices = ends
        for slot in slots:
            fields[f"limit_{slot.name}"] = _amount_field(slot)
            if slot.has_period:
                fields[f"period_{slot.name}"] = _period_field(slot)

    @cached_property
    def limits(self) -> list[LimitFields]:
        """The fields of each limit, with those that hold for the key anyway."""
        parents = parents_of(self._access.tenant, **self.holder())
        return [
            LimitFields(
                limit=self[f"limit_{slot.name}"],
                period=self[f"period_{slot.name}"] if slot.has_period else None,
                parents=[told(row) for row in parents if counts_of(row) == slot.counts],
                note=self.note_on(slot),
            )
            for slot in self._slots
        ]

    def holder(self) -> dict[str, Any]:
        """Whose key it is, by the name of the key's column; nothing for the tenant."""
        raise NotImplementedError

    def note_on(self, slot: Slot) -> str:
        """What is to be known of a limit besides; empty: nothing."""
        return ""

    def clean_address_blocks(self) -> list[str] | None:
        wanted = self.cleaned_data["address_blocks"].replace(",", " ").split()
        return list(dict.fromkeys(network_in(one) for one in wanted)) or None

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or self.cleaned_data
        # A key that may call nothing is no mistake of who changes its name.
        chosen = {"which_models", "models"} & set(self.changed_data)
        if chosen and cleaned.get("which_models") == THESE and not cleaned.get("models"):
            self.add_error("models", _("Choose a model, or let the key call those of the tenant."))
        if cleaned.get("expires") == ON_A_DAY and not cleaned.get("expires_on"):
            if "expires_on" not in self.errors:
                self.add_error("expires_on", _("Name the day."))
        elif "expires" in self.changed_data and (ends := self._end()) is not None and ends <= now():
            self.add_error("expires_on", _("This day has begun already."))
        return cleaned

    def settings(self) -> dict[str, Any]:
        """What the form says of the key, by its columns; of one with mistakes, what is right."""
        cleaned = self._cleaned
        scopes = [scope for scope in DOORS if scope in cleaned.get("scopes", DOORS)]
        listed = cleaned.get("which_models") == THESE
        return {
            "label": cleaned.get("label", ""),
            "scopes": None if len(scopes) == len(DOORS) else scopes,
            "allow_all_models": False if listed else None,
            "models": cleaned.get("models", []) if listed else None,
            "address_blocks": cleaned.get("address_blocks"),
            "expires_at": self._end(),
        }

    def limit_in(self, slot: Slot) -> OwnLimit | None:
        """What is filled in at a slot, in whole units; None: nothing, or nothing that is right."""
        amount = self._cleaned.get(f"limit_{slot.name}")
        if amount is None:
            return None
        period = self._cleaned.get(f"period_{slot.name}") or slot.period if slot.has_period else ""
        return OwnLimit(slot.counts, int(amount.scaleb(slot.places)), period)

    def refused(self, error: ValidationError) -> None:
        """Put what a service said beside the fields that it is about."""
        for name, messages in error.message_dict.items():
            field = {"expires_at": "expires", "__all__": "label"}.get(name, name)
            field = f"limit_{name}" if f"limit_{name}" in self.fields else field
            self.add_error(field if field in self.fields else None, ValidationError(messages))

    @property
    def _cleaned(self) -> dict[str, Any]:
        """What is right of what was filled in; of an empty form, what it begins with."""
        if not self.is_bound:
            return {name: field.initial for name, field in self.fields.items() if field.initial is not None}
        # Asking for them is what checks them.
        _checked = self.errors
        return self.cleaned_data

    def _end(self) -> datetime | None:
        cleaned = self._cleaned
        chosen, day = cleaned.get("expires"), cleaned.get("expires_on")
        if chosen == ON_A_DAY and day is not None:
            zone = ZoneInfo(self._access.tenant.time_zone)
            return datetime(day.year, day.month, day.day, tzinfo=zone)
        if chosen == LONGEST:
            return self._longest()
        return now() + timedelta(days=int(chosen)) if chosen and chosen.isdigit() else None

    def _longest(self) -> datetime | None:
        """The latest end that the tenant allows."""
        raise NotImplementedError


class NewKeyForm(KeyForm):
    """What a new key is; ``models`` are those that its tenant lets keys call, and a key may have fewer."""

    owner = forms.ChoiceField(
        label=gettext_lazy("Owner"),
        help_text=gettext_lazy("A key of a person ends when they leave; one of a service account stays."),
    )

    def __init__(self, access: Access, models: Sequence[str], *args: Any, **kwargs: Any) -> None:
        longest = access.tenant.max_key_days
        slots = [Slot(counts, counts) for counts in LIMITS]
        super().__init__(access, models, slots, _ends(longest), *args, **kwargs)
        fields: dict[str, Any] = self.fields
        fields["owner"].choices = self._owners
        fields["owner"].initial = fields["owner"].choices[0][0]
        fields["expires"].initial = "90" if longest is None or longest > 90 else LONGEST

    def holder(self) -> dict[str, Any]:
        chosen = self["owner"].value() if not self.is_bound else self.data.get("owner", "")
        if chosen == ME:
            return {"member": self._access.member}
        if chosen.startswith(ACCOUNT):
            choices = dict(self._owners)
            if chosen in choices:
                return {"service_account": ServiceAccount.objects.get(pk=chosen.removeprefix(ACCOUNT))}
        return {}

    def settings(self) -> dict[str, Any]:
        """What the form says of the key, as ``issue_key`` takes it; of one with mistakes, what is right."""
        return super().settings() | self.holder()

    def own_limits(self) -> list[OwnLimit]:
        """The limits that are filled in."""
        return [one for slot in self._slots if (one := self.limit_in(slot)) is not None]

    def as_key(self) -> ApiKey:
        """The key as it would be, not saved."""
        return ApiKey(tenant=self._access.tenant, **self.settings())

    def _longest(self) -> datetime:
        return now() + timedelta(days=self._access.tenant.max_key_days or 0)

    @cached_property
    def _owners(self) -> list[tuple[str, str]]:
        mine = [(ME, _("Me"))] if self._access.member is not None else []
        if self._access.manages_keys != Reach.WHOLE_TENANT:
            return mine
        accounts = ServiceAccount.objects.filter(tenant=self._access.tenant, closed_at=None).order_by("name")
        return [
            *mine,
            *(
                (f"{ACCOUNT}{one.pk}", _("%(name)s (service account)") % {"name": one.name})
                for one in accounts
            ),
            (THE_TENANT, _("The tenant itself")),
        ]


def in_days(days: int) -> tuple[str, str]:
    """The choice of an end in so many days."""
    return str(days), ngettext("in %(count)d day", "in %(count)d days", days) % {"count": days}


def _ends(longest: int | None) -> list[tuple[str, str]]:
    """What may be chosen for the end of a new key where secrets work for ``longest`` days at most."""
    ends = [in_days(days) for days in DAYS if longest is None or days < longest]
    if longest is None:
        ends.append((NEVER, _("never")))
    else:
        told = ngettext("in %(count)d day, the longest here", "in %(count)d days, the longest here", longest)
        ends.append((LONGEST, told % {"count": longest}))
    return [*ends, (ON_A_DAY, _("on a day"))]


def _amount_field(slot: Slot) -> forms.DecimalField:
    limit = None if slot.row is None else slot.row.limit
    return forms.DecimalField(
        label=slot.label,
        required=False,
        min_value=0,
        max_value=Decimal(LARGEST).scaleb(-slot.places),
        decimal_places=slot.places,
        help_text=NEEDS_PRICES if slot.counts == Unit.MICRO_USD else "",
        initial=None if limit is None else _plainly(limit, slot.places),
    )


def _period_field(slot: Slot) -> forms.ChoiceField:
    # Elsewhere limits get periods that are not offered here; those that there are stay.
    periods = [*LIMIT_PERIODS, *([slot.period] if slot.period not in LIMIT_PERIODS else [])]
    return forms.ChoiceField(
        label=_("Period"),
        choices=[(str(period), window_name(str(period))) for period in periods],
        widget=forms.Select({"aria-label": _("%(what)s: Period") % {"what": slot.label}}),
        initial=str(slot.period),
        required=False,
    )


def _plainly(limit: int, places: int) -> Decimal:
    """An amount with no more digits than it needs: ``2.5`` for 2500000 millionths."""
    amount = Decimal(limit).scaleb(-places)
    return Decimal(f"{amount:f}".rstrip("0").rstrip(".")) if places and limit else Decimal(limit)
