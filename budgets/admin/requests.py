"""Calls at the gateway's doors, to be read."""

from __future__ import annotations

from django.contrib import admin
from django.db.models import Q, QuerySet
from django.template.loader import render_to_string

from audit.admin import ReadOnlyAdmin
from audit.growing import GrowingList, among_newest, narrowing, when
from audit.models import RequestEvent
from budgets.admin.finding import FINDS, calls_found
from budgets.models import LedgerEntry
from budgets.money import usd_total
from budgets.refusal_explained import explain_call
from budgets.timing import stretches


@admin.register(RequestEvent)
class RequestEventAdmin(GrowingList, ReadOnlyAdmin):
    """Calls at the gateway's doors, refused ones included."""

    newest_by = "at"
    list_display = [
        "at", "request_id", "tenant", "key", "route", "model", "run", "status", "outcome", "refusal",
        "refused_by", "input_tokens", "output_tokens", "exact",
    ]  # fmt: skip
    list_filter = [
        narrowing("tenant_id", "tenant"),
        narrowing("key_id", "key"),
        when("at"),
        among_newest(
            "status_class",
            "status",
            {
                "2": ("2xx answered", Q(status__range=(200, 299))),
                "4": ("4xx refused or left", Q(status__range=(400, 499))),
                "5": ("5xx failed", Q(status__range=(500, 599))),
                "refused": ("Refused", ~Q(refusal="")),
                "estimated": ("Estimated tokens", Q(exact=False)),
            },
        ),
    ]
    search_help_text = FINDS
    fieldsets = [
        ("The call", {"fields": ["request_id", "at", "tenant", "key", "route", "dialect", "stream", "run"]}),
        ("What was asked of it, in order", {"fields": ["questions"]}),
        ("What it was answered", {"fields": ["status", "outcome", "refusal", "refused_by"]}),
        ("Where the time went", {"fields": ["timing"]}),
        ("What was booked", {"fields": ["booking"]}),
    ]
    readonly_fields = ["questions", "timing", "booking"]
    compared = ("model", "run", "refusal", "outcome", "tenant", "key")

    def found(self, rows: QuerySet[RequestEvent], term: str) -> QuerySet[RequestEvent] | None:
        return calls_found(rows, term)

    @admin.display(description="questions of admission")
    def questions(self, event: RequestEvent) -> str:
        context = {"explained": explain_call(event), "event": event}
        return render_to_string("admin/audit/requestevent/_questions.html", context)

    @admin.display(description="time")
    def timing(self, event: RequestEvent) -> str:
        entry = LedgerEntry.objects.filter(request_id=event.pk, kind=LedgerEntry.Kind.USAGE).first()
        context = {"stretches": stretches(event, entry)}
        return render_to_string("admin/audit/requestevent/_timing.html", context)

    @admin.display(description="entries of the ledger")
    def booking(self, event: RequestEvent) -> str:
        of_call = LedgerEntry.objects.filter(request_id=event.pk)
        corrections = LedgerEntry.objects.filter(corrects=event.pk)
        entries = [*of_call.order_by("id"), *corrections.order_by("id")]
        context = {
            "event": event,
            "entries": [(entry, usd_total(entry.cost_micro_usd), _marks(entry)) for entry in entries],
        }
        return render_to_string("admin/audit/requestevent/_booking.html", context)


def _marks(entry: LedgerEntry) -> list[str]:
    said = {
        f"estimated by {entry.estimator or 'an older release'}": not entry.exact,
        "settled late": entry.late,
        "on credit": entry.on_credit,
        f"corrected by {entry.actor}: {entry.reason}": entry.corrects is not None,
    }
    return [mark for mark, holds in said.items() if holds]
