"""Selections of usage as they stand in an address, behind the question mark; pages and API read the same."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import urlencode
from uuid import UUID

from django import forms
from django.core.exceptions import ValidationError
from django.http import QueryDict
from django.utils.translation import gettext as _

from budgets.usage import FIGURES, NONE, PARTS, Selection
from tenants.forms import told_in_every_zone

# What calls can have none of, or of whose route nobody knows; said by ``without=team``, because an empty
# field of a form says nothing.
WITHOUT = ("team", "member", "route", "run")
IDS = ("team", "member", "key", "request")
TEXTS = ("model", "upstream", "operation", "route", "run")
DAYS = {"from": "from_day", "before": "before_day"}
INSTANTS = ("since", "until")
ORDERS = [sign + figure for figure in FIGURES for sign in ("", "-")]
MOST_ROWS = 1000


class Several(forms.MultipleChoiceField):
    """Names out of a list, each in a field of its own or with commas between them; empty ones say nothing."""

    def to_python(self, value: Any) -> list[str]:
        return [name for text in super().to_python(value) for name in text.split(",") if name]


class UsageForm(forms.Form):
    """What is asked of usage: filters, by what it is told apart, the order, how many rows.

    ``known`` are further names in the address that are somebody else's; any
    other makes the form invalid, because a filter that was misspelt would
    select more than was asked for.
    """

    by = Several(choices=[(part, part) for part in PARTS], required=False)
    order = forms.ChoiceField(choices=[(order, order) for order in ORDERS], required=False)
    limit = forms.IntegerField(min_value=1, max_value=MOST_ROWS, required=False)
    without = Several(choices=[(part, part) for part in WITHOUT], required=False)

    def __init__(self, asked: QueryDict, *, known: Iterable[str] = ()) -> None:
        super().__init__(asked)
        self.fields |= {name: forms.DateField(required=False) for name in DAYS}
        self.fields |= {
            name: forms.DateTimeField(required=False, validators=[told_in_every_zone]) for name in INSTANTS
        }
        self.fields |= {name: forms.UUIDField(required=False) for name in IDS}
        self.fields |= {name: forms.CharField(required=False, strip=False) for name in TEXTS}
        self._unknown = sorted(set(asked) - set(self.fields) - set(known))

    def clean(self) -> dict[str, Any]:
        cleaned: dict[str, Any] = self.cleaned_data
        if self._unknown:
            raise ValidationError(
                _("Nothing is known by the name of %(names)s.") % {"names": ", ".join(self._unknown)}
            )
        for first, last in (("from", "before"), ("since", "until")):
            begins, ends = cleaned.get(first), cleaned.get(last)
            if begins and ends and begins >= ends:
                self.add_error(
                    last,
                    _("It ends before it begins: %(last)s has to be after %(first)s.")
                    % {"last": last, "first": first},
                )
        return cleaned

    def selection(self, tenant_id: UUID | None) -> Selection:
        """What a valid form selects, of a tenant or of all."""
        cleaned = self.cleaned_data
        wanted: dict[str, Any] = {column: cleaned[name] for name, column in DAYS.items()}
        wanted |= {name: cleaned[name] for name in INSTANTS}
        wanted |= {f"{name}_id": cleaned[name] for name in IDS}
        wanted |= {name: cleaned[name] or None for name in TEXTS}
        for part in cleaned["without"]:
            wanted |= {part: ""} if part in TEXTS else {f"{part}_id": NONE}
        return Selection(tenant_id=tenant_id, **wanted)


def as_query(selection: Selection, *, by: Sequence[str] = (), **more: str) -> str:
    """What of an address selects the same; whose tenant it is, the caller says."""
    pairs: list[tuple[str, str]] = list(more.items()) + [("by", part) for part in by]
    for name in DAYS | dict.fromkeys(INSTANTS):
        value = getattr(selection, DAYS.get(name, name))
        if value is not None:
            pairs.append((name, value.isoformat().replace("+00:00", "Z")))
    for name in (*IDS, *TEXTS):
        value = getattr(selection, f"{name}_id" if name in IDS else name)
        if name in WITHOUT and value in (NONE, ""):
            pairs.append(("without", name))
        elif value is not None:
            pairs.append((name, str(value)))
    return urlencode(pairs)
