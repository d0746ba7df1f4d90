"""What every page can tell."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.http import HttpRequest
from django.utils.functional import SimpleLazyObject

from tenants import generations
from tenants.models import Tenant


def pending_changes(request: HttpRequest) -> dict[str, Any]:
    """For templates: ``pending_changes`` names whose settings are saved and not in force yet.

    Looked up only by a page that asks.
    """
    return {"pending_changes": SimpleLazyObject(_whose_are_pending)}


def _whose_are_pending() -> list[str]:
    subjects = generations.pending()
    tenants = [UUID(subject) for subject in subjects if subject != generations.PLATFORM]
    slugs = Tenant.objects.filter(pk__in=tenants).order_by("slug").values_list("slug", flat=True)
    return [*(["the platform"] if generations.PLATFORM in subjects else []), *slugs]
