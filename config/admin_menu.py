"""The menu of the admin: what operators look for, grouped by what they are about to do."""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest
from django.urls import reverse

# Each page: the model whose list it is, what operators call it, and its picture.
Page = tuple[str, str, str]

GROUPS: list[tuple[str, list[Page]]] = [
    (
        "Now",
        [
            ("budgets.runningcall", "Running streams", "stream"),
            ("budgets.killswitch", "Kill switches", "emergency_home"),
            ("audit.requestevent", "Requests", "list_alt"),
        ],
    ),
    (
        "Tenants and people",
        [
            ("tenants.tenant", "Tenants", "apartment"),
            ("tenants.team", "Teams", "groups"),
            ("tenants.member", "Members", "badge"),
            ("tenants.serviceaccount", "Service accounts", "smart_toy"),
            ("tenants.user", "People who sign in", "person"),
            ("auth.group", "Groups of operators", "shield_person"),
        ],
    ),
    (
        "Keys",
        [
            ("keys.apikey", "Keys", "key"),
            ("keys.managementkey", "Management keys", "vpn_key"),
            ("keys.anonymousaccess", "Visitors", "no_accounts"),
            ("keys.policyrule", "Policies", "rule"),
            ("keys.promptrules", "Rules of the prompt log", "policy"),
            ("audit.loggedprompt", "Prompt log", "chat"),
        ],
    ),
    (
        "Limits",
        [
            ("budgets.budget", "Budgets", "savings"),
            ("budgets.ratelimit", "Rate limits", "speed"),
            ("budgets.limitraise", "Raises", "trending_up"),
            ("budgets.raiserequest", "Requests for more", "front_hand"),
            ("budgets.outagecredit", "Credit without Redis", "credit_score"),
        ],
    ),
    (
        "Prices and costs",
        [
            ("budgets.price", "Prices", "sell"),
            ("budgets.priceproposal", "Proposed prices", "price_check"),
            ("budgets.upstreamcost", "Costs of upstreams", "receipt_long"),
        ],
    ),
    (
        "Upstreams and models",
        [
            ("proxy.upstream", "Upstreams", "dns"),
            ("proxy.modelalias", "Model aliases", "alternate_email"),
            ("budgets.estimate", "Estimates", "straighten"),
        ],
    ),
    (
        "Books",
        [
            ("budgets.ledgerentry", "Ledger", "menu_book"),
            ("budgets.usagerollup", "Use by the hour", "bar_chart"),
            ("budgets.budgetperiod", "Periods of budgets", "calendar_view_month"),
            ("budgets.periodclosing", "Closed periods", "event_available"),
            ("budgets.closedmonth", "Closed months", "lock_clock"),
            ("budgets.statement", "Statements", "description"),
            ("budgets.archivedmonth", "Archived months", "archive"),
            ("budgets.parkedrecord", "Parked records", "report"),
            ("budgets.verification", "Comparing the books", "fact_check"),
        ],
    ),
    (
        "Notices",
        [
            ("budgets.recipient", "Recipients", "contact_mail"),
            ("budgets.notice", "Notices", "notifications"),
            ("budgets.delivery", "Deliveries", "outgoing_mail"),
        ],
    ),
    ("Audit", [("audit.auditevent", "Audit", "history_edu")]),
]


def navigation(request: HttpRequest) -> list[dict[str, Any]]:
    """The groups with the pages that the person may see, as django-unfold takes them."""
    first = {"title": "Dashboard", "icon": "dashboard", "link": reverse("admin:index")}
    groups = [
        (title, [_item(request, *page) for page in pages if may_see(request, page[0])])
        for title, pages in GROUPS
    ]
    return [
        {"items": [first]},
        *({"title": title, "items": items} for title, items in groups if items),
    ]


def _item(request: HttpRequest, label: str, title: str, icon: str) -> dict[str, Any]:
    link = reverse(f"admin:{label.replace('.', '_')}_changelist")
    # By the whole path: one list's may be the beginning of another's.
    return {"title": title, "icon": icon, "link": link, "active": request.path.startswith(link)}


def may_see(request: HttpRequest, label: str) -> bool:
    """Whether the person sees the pages of the model ``app.model``."""
    return any(request.user.has_perm(label.replace(".", f".{may}_")) for may in ("view", "change"))
