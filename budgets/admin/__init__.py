"""Pages of this app in the admin, by what they are about. Importing them registers them."""

from budgets.admin import (
    books,
    costs,
    estimates,
    limits,
    months,
    notices,
    prices,
    raises,
    requests,
    switches,
    tenants,
    verifications,
)

__all__ = [
    "books",
    "costs",
    "estimates",
    "limits",
    "months",
    "notices",
    "prices",
    "raises",
    "requests",
    "switches",
    "tenants",
    "verifications",
]
