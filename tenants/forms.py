"""What forms of several apps have in common."""

from __future__ import annotations

import re
from datetime import date
from typing import Any, ClassVar, cast

from django import forms
from django.core.exceptions import ValidationError
from django.utils.translation import gettext as _
from unfold.widgets import UnfoldAdminRadioSelectWidget, UnfoldAdminTextareaWidget

from tenants.model_names import canonical_setting


def told_in_every_zone(moment: date) -> None:
    """A validator: the first and the last days that Python knows are none at all in some time zone."""
    if not 1970 <= moment.year <= 9998:
        raise ValidationError(_("Name a year from 1970 to 9998."))


class ModelNamesForm(forms.ModelForm):  # type: ignore[type-arg]  # the parameter is in the stubs only
    """Takes the name of a model, and another one for it, in every spelling that clients may use."""

    def clean_model(self) -> str:
        return canonical_setting(self.cleaned_data["model"])

    def clean_alias(self) -> str:
        return canonical_setting(self.cleaned_data["alias"])


class WhichModelsForm(forms.ModelForm):  # type: ignore[type-arg]  # the parameter is in the stubs only
    """Asks which models a tenant or a key may call, and keeps silence apart from an empty list.

    The two columns behind it, ``allow_all_models`` and ``models``, say one
    thing together, so they are asked as one question.
    """

    SILENT, ALL, LISTED = "silent", "all", "listed"

    silence: ClassVar[str]
    allow_all_when_silent: ClassVar[bool | None]

    may_call = forms.ChoiceField(
        widget=UnfoldAdminRadioSelectWidget,
        help_text="Of the models that are installed. The list below counts with the last answer only.",
    )
    listed = forms.CharField(
        label="Listed models",
        widget=UnfoldAdminTextareaWidget(attrs={"rows": 4}),
        required=False,
        help_text="One on each line, such as llama3.2:latest. An empty list allows none.",
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        question = cast("forms.ChoiceField", self.fields["may_call"])
        question.choices = [
            (self.SILENT, self.silence),
            (self.ALL, "Every installed model"),
            (self.LISTED, "Only the listed models"),
        ]
        models = self.instance.models
        if self.instance.allow_all_models:
            question.initial = self.ALL
        else:
            question.initial = self.SILENT if models is None else self.LISTED
        self.fields["listed"].initial = "\n".join(models or [])

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or self.cleaned_data
        if cleaned.get("listed") and cleaned.get("may_call") != self.LISTED:
            self.add_error("listed", "Choose “Only the listed models”, or empty the list.")
        return cleaned

    def validate_unique(self) -> None:
        """Check all constraints, also those that speak of columns which are not in the form."""
        super().validate_unique()
        if not self.errors:
            try:
                self.instance.validate_constraints()
            except ValidationError as exc:
                self.add_error(None, exc)

    def settings(self) -> dict[str, Any]:
        """All that was entered, by the names of the columns."""
        answers = {
            name: value for name, value in self.cleaned_data.items() if name not in ("may_call", "listed")
        }
        return answers | self._which_models()

    def changes(self) -> dict[str, Any]:
        """What was entered and differs from before, by the names of the columns."""
        changed = {name: self.cleaned_data[name] for name in self.changed_data if name in self.cleaned_data}
        if changed.keys() & {"may_call", "listed"}:
            changed = {name: value for name, value in changed.items() if name not in ("may_call", "listed")}
            changed |= self._which_models()
        return changed

    def _which_models(self) -> dict[str, Any]:
        answer = self.cleaned_data["may_call"]
        if answer == self.ALL:
            return {"allow_all_models": True, "models": None}
        if answer == self.SILENT:
            return {"allow_all_models": self.allow_all_when_silent, "models": None}
        names = re.split(r"[\s,]+", self.cleaned_data["listed"])
        return {"allow_all_models": False, "models": sorted({name for name in names if name})}
