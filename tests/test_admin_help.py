"""Every field that an operator fills in says what belongs there, with its unit or an example."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from django import forms
from django.contrib import admin
from django.db import models
from django.http import HttpRequest
from django.test import RequestFactory
from django.urls import reverse

from budgets.models import ClosedMonth
from tenants.models import User

APPS = {"audit", "budgets", "keys", "proxy", "tenants"}
ASKED_OTHERWISE: dict[type[models.Model], str] = {
    ClosedMonth: "its page asks with a form of its own, WhichMonthForm",
}


@pytest.fixture
def superuser_asks() -> HttpRequest:
    # Only now are all pages there: some replace those of the layers below.
    reverse("admin:index")
    request = RequestFactory().get("/admin/")
    request.user = User(username="olga", is_staff=True, is_superuser=True)
    return request


def fields_asked(page: admin.ModelAdmin[Any], request: HttpRequest) -> Iterator[tuple[str, forms.Field]]:
    """What the pages of a model let a superuser enter, for a new row and for one that is there."""
    row = page.model()
    if page.has_add_permission(request):
        yield from page.get_form(request, None).base_fields.items()
    if page.has_change_permission(request, row):
        yield from page.get_form(request, row, change=True).base_fields.items()


def silent(asked: Iterator[tuple[str, forms.Field]]) -> set[str]:
    return {
        name
        for name, field in asked
        if not str(field.help_text).strip() and not isinstance(field.widget, forms.HiddenInput)
    }


def test_every_field_of_every_model_in_the_admin_says_what_belongs_there(superuser_asks: HttpRequest) -> None:
    found = {
        model: missing
        for model, page in admin.site._registry.items()
        if (missing := silent(fields_asked(page, superuser_asks)))
    }

    assert found.keys() == ASKED_OTHERWISE.keys()


def test_every_other_form_of_the_admin_says_what_belongs_there(superuser_asks: HttpRequest) -> None:
    asked = {form.__qualname__: silent(iter(form.base_fields.items())) for form in own_forms(forms.Form)}

    assert {"ReasonForm", "RotationForm", "WhichMonthForm", "AcceptForm"} <= asked.keys()
    assert {name: missing for name, missing in asked.items() if missing} == {}


def own_forms(kind: type[forms.Form]) -> Iterator[type[forms.Form]]:
    """The forms of the admin that belong to no model."""
    for form in kind.__subclasses__():
        where = form.__module__
        if where.partition(".")[0] in APPS and ("admin" in where or where == "budgets.forms"):
            yield form
        yield from own_forms(form)
