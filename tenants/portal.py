"""The portal's frame: one's tenants, and what the pages of a tenant start from."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate

from django.contrib.auth.decorators import login_required
from django.db.models import Q
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase, HttpResponseRedirect
from django.shortcuts import redirect, render
from django.urls import path, reverse
from django.views.decorators.http import require_http_methods

from audit.walls import across, within
from tenants.access import Access, access_to, tenants_of

# Operators see more than fit on a page, and search.
MOST_LISTED = 100

Page = Callable[Concatenate[HttpRequest, Access, ...], HttpResponseBase]
View = Callable[..., HttpResponseBase]


def tenant_page(page: Page) -> View:
    """A view under ``/portal/<slug>/`` that is given the visitor's ``Access`` instead of the slug.

    It runs within the walls of its tenant, whoever visits: rows of others are not there.
    Strangers are asked to sign in. A tenant that is not there and one that is
    not theirs get the same 404. Templates find the access as ``access``.
    """

    @wraps(page)
    @login_required
    def of_tenant(request: HttpRequest, slug: str, **parts: Any) -> HttpResponseBase:
        access = access_to(request.user, slug)
        if access is None:
            raise Http404
        request.access = access  # type: ignore[attr-defined]  # for the frame around every page
        with within(access.tenant.pk):
            return page(request, access, **parts)

    return of_tenant


def form_on(page: str, *parts: str) -> Callable[[View], View]:
    """For a view that only takes a form: whoever loads its address anew, or types it in, gets to ``page``.

    That is the name of the page that has the form; ``parts`` are what its address
    shares with this one besides the slug.
    """

    def decorate(view: View) -> View:
        @wraps(view)
        @require_http_methods(["GET", "HEAD", "POST"])
        def taken(request: HttpRequest, slug: str, **given: Any) -> HttpResponseBase:
            if request.method == "POST":
                return view(request, slug=slug, **given)
            shared = {part: given[part] for part in parts}
            return HttpResponseRedirect(reverse(page, kwargs={"slug": slug} | shared))

        return taken

    return decorate


@login_required
def tenants(request: HttpRequest) -> HttpResponse:
    """The tenants of a person; if it is only one, its page."""
    # No name has the character that PostgreSQL does not take.
    wanted = request.GET.get("q", "").replace("\0", "").strip()
    with across():
        found = tenants_of(request.user)
        if wanted:
            found = found.filter(Q(slug__icontains=wanted) | Q(name__icontains=wanted))
        listed = list(found[: MOST_LISTED + 1])
    if len(listed) == 1 and not wanted:
        return redirect("portal-tenant", listed[0].slug)
    context = {"tenants": listed[:MOST_LISTED], "more": len(listed) > MOST_LISTED, "q": wanted}
    return render(request, "portal/tenants.html", context)


urlpatterns = [
    path("", tenants, name="portal"),
]
