"""The form for a new key."""

from __future__ import annotations

from collections.abc import Sequence
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
from budgets.limited_keys import OwnLimit, parents_of, told
from budgets.models import LARGEST, PeriodKind, Unit
from budgets.words import WINDOWS
from keys.endpoints import DOORS
from keys.models import ApiKey
from keys.networks import network_in
from tenants.access import Access, Reach
from tenants.models import ServiceAccount

ME, THE_TENANT, ACCOUNT = "me", "tenant", "service:"
DAYS = (7, 30, 90, 365)
NEVER, LONGEST, ON_A_DAY = "never", "longest", "day"
UNITS = (Unit.TOKENS, Unit.MICRO_USD, Unit.REQUESTS)
LIMIT_PERIODS = (PeriodKind.HOUR, PeriodKind.DAY, PeriodKind.WEEK, PeriodKind.MONTH, PeriodKind.LIFETIME)
NEEDS_PRICES = gettext_lazy("Calls of models that have no price are refused then.")
LIMITS: dict[str, Promise] = {
    Unit.TOKENS: gettext_lazy("Tokens, in and out"),
    Unit.MICRO_USD: gettext_lazy("US dollars"),
    Unit.REQUESTS: gettext_lazy("Requests"),
}


class NewKeyForm(forms.Form):
    """What a new key is; ``models`` are those that its tenant lets keys call, and a key may have fewer."""

    label = forms.CharField(
        label=gettext_lazy("Name"),
        max_length=80,
        help_text=gettext_lazy("What the key is for, such as nightly-report."),
    )
    owner = forms.ChoiceField(
        label=gettext_lazy("Owner"),
        help_text=gettext_lazy("A key of a person ends when they leave; one of a service account stays."),
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
            ("tenant", gettext_lazy("Those of the tenant, later ones too")),
            ("these", gettext_lazy("Only these:")),
        ],
        initial="tenant",
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
        help_text=gettext_lazy("At its first moment. Only for “on a day”."),
    )

    def __init__(self, access: Access, models: Sequence[str], *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._access = access
        fields: dict[str, Any] = self.fields
        fields["owner"].choices = self._owners
        fields["owner"].initial = fields["owner"].choices[0][0]
        fields["models"].choices = [(name, name) for name in models]
        fields["expires"].choices = _ends(access.tenant.max_key_days)
        fields["expires"].initial = _usual_end(access.tenant.max_key_days)
        for unit, label in LIMITS.items():
            places = MEASURES[unit].places
            fields[f"limit_{unit}"] = forms.DecimalField(
                label=str(label),
                required=False,
                min_value=0,
                max_value=Decimal(LARGEST).scaleb(-places),
                decimal_places=places,
                help_text=NEEDS_PRICES if unit == Unit.MICRO_USD else "",
            )
            fields[f"period_{unit}"] = forms.ChoiceField(
                label=_("Period"),
                choices=[(period.value, WINDOWS[period]) for period in LIMIT_PERIODS],
                widget=forms.Select({"aria-label": _("%(what)s: Period") % {"what": label}}),
                initial=PeriodKind.MONTH,
                required=False,
            )

    @cached_property
    def limits(self) -> list[tuple[Any, Any, list[str]]]:
        """The fields of each limit, with those that hold for the key anyway."""
        parents = parents_of(self._access.tenant, **self.holder())
        return [
            (
                self[f"limit_{unit}"],
                self[f"period_{unit}"],
                [told(one) for one in parents if one.unit == unit],
            )
            for unit in UNITS
        ]

    def holder(self) -> dict[str, Any]:
        """The chosen member or service account, by the name of the key's column; nothing for the tenant."""
        chosen = self["owner"].value() if not self.is_bound else self.data.get("owner", "")
        if chosen == ME:
            return {"member": self._access.member}
        if chosen.startswith(ACCOUNT):
            choices = dict(self._owners)
            if chosen in choices:
                return {"service_account": ServiceAccount.objects.get(pk=chosen.removeprefix(ACCOUNT))}
        return {}

    def clean_address_blocks(self) -> list[str] | None:
        wanted = self.cleaned_data["address_blocks"].replace(",", " ").split()
        return list(dict.fromkeys(network_in(one) for one in wanted)) or None

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or self.cleaned_data
        if cleaned.get("which_models") == "these" and not cleaned.get("models"):
            self.add_error("models", _("Choose a model, or let the key call those of the tenant."))
        if cleaned.get("expires") == ON_A_DAY and not cleaned.get("expires_on"):
            self.add_error("expires_on", _("Name the day."))
        elif (ends := self._end()) is not None and ends <= now():
            self.add_error("expires_on", _("This day has begun already."))
        return cleaned

    def settings(self) -> dict[str, Any]:
        """What the form says of the key, as ``issue_key`` takes it; of one with mistakes, what is right."""
        cleaned = self._cleaned
        scopes = [scope for scope in DOORS if scope in cleaned.get("scopes", DOORS)]
        listed = cleaned.get("which_models") == "these"
        return {
            "label": cleaned.get("label", ""),
            "scopes": None if len(scopes) == len(DOORS) else scopes,
            "allow_all_models": False if listed else None,
            "models": cleaned.get("models", []) if listed else None,
            "address_blocks": cleaned.get("address_blocks"),
            "expires_at": self._end(),
            **self.holder(),
        }

    def own_limits(self) -> list[OwnLimit]:
        """The limits that are filled in, in whole units."""
        return [
            OwnLimit(
                unit,
                self.cleaned_data[f"period_{unit}"] or PeriodKind.MONTH,
                int(self.cleaned_data[f"limit_{unit}"].scaleb(MEASURES[unit].places)),
            )
            for unit in UNITS
            if self.cleaned_data.get(f"limit_{unit}") is not None
        ]

    def refused(self, error: ValidationError) -> None:
        """Put what a service said beside the fields that it is about."""
        for name, messages in error.message_dict.items():
            field = {"expires_at": "expires", "__all__": "label"}.get(name, name)
            field = f"limit_{name}" if name in LIMITS else field
            self.add_error(field if field in self.fields else None, ValidationError(messages))

    def as_key(self) -> ApiKey:
        """The key as it would be, not saved."""
        return ApiKey(tenant=self._access.tenant, **self.settings())

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
            return now() + timedelta(days=self._access.tenant.max_key_days or 0)
        return now() + timedelta(days=int(chosen)) if chosen and chosen.isdigit() else None

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


def _ends(longest: int | None) -> list[tuple[str, str]]:
    """What may be chosen for the end of a key in a tenant whose secrets work for ``longest`` days at most."""
    ends = [
        (str(days), ngettext("in %(count)d day", "in %(count)d days", days) % {"count": days})
        for days in DAYS
        if longest is None or days < longest
    ]
    if longest is None:
        ends.append((NEVER, _("never")))
    else:
        told = ngettext("in %(count)d day, the longest here", "in %(count)d days, the longest here", longest)
        ends.append((LONGEST, told % {"count": longest}))
    return [*ends, (ON_A_DAY, _("on a day"))]


def _usual_end(longest: int | None) -> str:
    return "90" if longest is None or longest > 90 else LONGEST
