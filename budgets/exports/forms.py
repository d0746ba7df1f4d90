"""What people and programs fill in to order an export."""

from __future__ import annotations

from datetime import date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from django import forms
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from budgets.exports.orders import Order
from budgets.exports.profiles import PROFILES
from budgets.usage import Selection
from tenants.models import Tenant

LAYOUTS = [
    ("csv", _("CSV for programs: comma, decimal point")),
    ("spreadsheet", _("CSV for spreadsheets")),
    ("xlsx", _("Excel workbook (XLSX)")),
]
SEPARATORS = [
    ("", _("Usual (semicolon for spreadsheets)")),
    ("comma", _("Comma")),
    ("semicolon", _("Semicolon")),
    ("tab", _("Tab")),
]


class Day(forms.DateInput):
    input_type = "date"

    def __init__(self) -> None:
        super().__init__(format="%Y-%m-%d")


class ExportForm(forms.Form):
    """An order, but for whose usage it is."""

    from_day = forms.DateField(label=_("From"), widget=Day, input_formats=["%Y-%m-%d"])
    before_day = forms.DateField(
        label=_("Before"),
        widget=Day,
        input_formats=["%Y-%m-%d"],
        help_text=_("The first day that is not in it."),
    )
    profile = forms.ChoiceField(
        label=_("Rows"), choices=lambda: [(one.name, gettext(one.title)) for one in PROFILES.values()]
    )
    layout = forms.ChoiceField(label=_("Layout"), choices=LAYOUTS, required=False)
    separator = forms.ChoiceField(label=_("Separator"), choices=SEPARATORS, required=False)
    decimal_comma = forms.BooleanField(label=_("Decimal comma"), required=False)
    gzip = forms.BooleanField(label=_("Compress (gzip)"), required=False)

    def clean(self) -> dict[str, Any]:
        """Find out whether such an export can be made, whoever's usage it is."""
        if not self.errors:
            self.order(None)
        return self.cleaned_data

    def order(self, tenant: Tenant | None) -> Order:
        """What was filled in, of the usage of ``tenant`` or of all; raises ``ValidationError``."""
        given = self.cleaned_data
        layout = given["layout"] or "csv"
        selection = Selection(
            tenant_id=None if tenant is None else tenant.pk,
            from_day=given["from_day"],
            before_day=given["before_day"],
        )
        return Order(
            selection,
            given["profile"],
            layout=layout,
            separator=given["separator"] or ("semicolon" if layout == "spreadsheet" else "comma"),
            decimal_comma=given["decimal_comma"],
            gzip=given["gzip"],
        )


def last_month(tenant: Tenant) -> dict[str, date]:
    """The days of the month before this one, with which people mostly begin."""
    this_month = datetime.now(ZoneInfo(tenant.time_zone)).date().replace(day=1)
    return {"from_day": (this_month - timedelta(days=1)).replace(day=1), "before_day": this_month}
