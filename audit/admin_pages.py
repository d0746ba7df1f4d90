"""What pages of the admin make of odd input: they tell what cannot be, and none of them breaks over it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from django.contrib import messages
from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.admin.widgets import AutocompleteSelect
from django.core.exceptions import NON_FIELD_ERRORS, FieldDoesNotExist, ValidationError
from django.db import DataError, IntegrityError
from django.db.models import ForeignKey
from django.db.models.constants import LOOKUP_SEP
from django.forms import ModelChoiceField, ModelForm
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from unfold.admin import ModelAdmin
from unfold.views import ChangeList

TOO_LATE = (
    "Somebody else has saved at the same moment what this cannot stand beside. Look at it and save again."
)


class AnsweringChangeList(ChangeList):
    """A list that takes a filter which no row can be compared with for one that it does not know."""

    def get_filters(self, request: HttpRequest) -> Any:
        try:
            return super().get_filters(request)
        except OverflowError as error:  # a year, month or day too long for a calendar
            raise IncorrectLookupParameters(error) from error

    def get_results(self, request: HttpRequest) -> None:
        try:
            super().get_results(request)
        except (DataError, ValueError, OverflowError) as error:
            # Django looks at filters before it asks the database, which is where these turn up.
            raise IncorrectLookupParameters(error) from error


class Chosen(AutocompleteSelect):
    """A thing that is chosen by typing. Django's own breaks where a form returns with an id that is none."""

    def optgroups(self, name: str, value: Sequence[str], attr: dict[str, Any] | None = None) -> list[Any]:
        return super().optgroups(name, [one for one in value if self._may_be(one)], attr)

    def _may_be(self, value: str) -> bool:
        try:
            self.field.target_field.get_prep_value(self.field.target_field.to_python(value))
        except (ValidationError, ValueError):
            return False
        return True


def refused(form: type[ModelForm[Any]], refusal: ValidationError) -> type[ModelForm[Any]]:
    """``form`` with what a service refused of it: at the field it speaks of, at the top if there is none."""
    said = refusal.error_dict if hasattr(refusal, "error_dict") else {NON_FIELD_ERRORS: refusal.error_list}

    class Refused(form):  # type: ignore[valid-type, misc]
        def full_clean(self) -> None:
            super().full_clean()
            for name, errors in said.items():
                self.add_error(name if name in self.fields else None, errors)

    return Refused


class AdminPage(ModelAdmin):
    """Lists and forms of a model; all in the admin begin here."""

    def get_changelist(self, request: HttpRequest, **options: Any) -> type[ChangeList]:
        return AnsweringChangeList

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest) -> bool:
        """Filters of the list, and ids. Others would answer questions about columns that it does not show."""
        name = lookup.partition(LOOKUP_SEP)[0]
        return self._offered(name, request) and bool(super().lookup_allowed(lookup, value, request))

    def _offered(self, name: str, request: HttpRequest) -> bool:
        filters = (one[0] if isinstance(one, list | tuple) else one for one in self.get_list_filter(request))
        parameters = {getattr(one, "parameter_name", one) for one in filters}
        if name in {"pk", self.opts.pk.name, self.date_hierarchy, *parameters}:
            return True
        try:
            return self.opts.get_field(name).is_relation
        except FieldDoesNotExist:
            return False

    def formfield_for_foreignkey(
        self, db_field: ForeignKey[Any], request: HttpRequest, **options: Any
    ) -> ModelChoiceField[Any] | None:
        if db_field.name in self.get_autocomplete_fields(request):
            options.setdefault("widget", Chosen(db_field, self.admin_site, using=options.get("using")))
        field: ModelChoiceField[Any] | None = super().formfield_for_foreignkey(db_field, request, **options)
        return field

    def changeform_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        """What a service refuses though the form did not comes back in the form, with all that was entered.

        By then the transaction of the first attempt is rolled back; the second
        one reads the same form, finds the refusal in it, and saves nothing.
        So it is with what another person saved after the form had been looked through.
        """
        try:
            return super().changeform_view(request, *args, **kwargs)
        except ValidationError as refusal:
            request.refusal = refusal  # type: ignore[attr-defined]
        except IntegrityError:
            request.refusal = ValidationError(TOO_LATE)  # type: ignore[attr-defined]
        return super().changeform_view(request, *args, **kwargs)

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **options: Any) -> Any:
        form = super().get_form(request, obj, change=change, **options)
        refusal = getattr(request, "refusal", None)
        return form if refusal is None else refused(form, refusal)

    def delete_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        return self._told_plainly(request, super().delete_view, *args, **kwargs)

    def response_action(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        """Also where what was chosen is no id."""
        return self._told_plainly(request, super().response_action, *args, **kwargs)

    def _told_plainly(
        self, request: HttpRequest, view: Callable[..., HttpResponse], *args: Any, **kwargs: Any
    ) -> HttpResponse:
        """What a service refuses though the form did not is a message and no fault; nothing was done then."""
        try:
            return view(request, *args, **kwargs)
        except ValidationError as exc:
            self.message_user(request, " ".join(exc.messages), messages.ERROR)
            return HttpResponseRedirect(request.path)
