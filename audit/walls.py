"""The walls between tenants: which rows the code that runs now may touch.

Whatever serves people and management keys runs in one of three places:

``closed``   where every door begins: any use of a tenant's table raises
``within``   one tenant: only its rows are there
``across``   all tenants, said on purpose: for operators, and for finding out who somebody is

Elsewhere (workers, commands, the doors for programs) there are no walls; that
is the system, which serves all tenants at once.

Each place has two walls, and each holds alone. Managers (``Walled``) narrow
every query or raise. And before a statement of a door is sent, its connection
becomes a role of PostgreSQL for which row-level security leaves only the
tenant's rows (``audit.walled_role``), whatever the statement is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar
from uuid import UUID

from django.apps import apps
from django.db import models
from django.db.models import Q
from django_scopes import ScopeError
from django_scopes.state import state

__all__ = ["ScopeError", "Walled", "across", "closed", "tenant_here", "walled_off", "within"]

M = TypeVar("M", bound=models.Model)

# The dimension, as django-scopes calls it, by which rows are told apart.
TENANT = "tenant"


@contextmanager
def closed() -> Iterator[None]:
    """Here nobody has said yet whose rows are meant: using a tenant's table raises ``ScopeError``."""
    with _place({"_enabled": True}):
        yield


@contextmanager
def within(tenant_id: UUID) -> Iterator[None]:
    """Here there is one tenant, and what the platform shows to all."""
    with _place({"_enabled": True, TENANT: tenant_id}):
        yield


@contextmanager
def across() -> Iterator[None]:
    """Here all tenants are meant. Whoever enters has asked before whether the person may."""
    with _place({"_enabled": False}):
        yield


def walled_off() -> bool:
    """Whether there are walls here: within a tenant, or closed."""
    return bool((state.get() or {}).get("_enabled"))


def tenant_here() -> UUID | None:
    """The tenant within which this runs; None within none."""
    return (state.get() or {}).get(TENANT)


@contextmanager
def _place(here: Mapping[str, Any]) -> Iterator[None]:
    before = state.get()
    state.set(dict(here))
    try:
        yield
    finally:
        # Not by a token: a body that is sent piece by piece may end in another context.
        state.set(before)


class Walled(models.Manager[M]):
    """The manager of a table of tenants.

    ``column`` is the field that has the tenant, or with ``via`` (the label of a
    model) a row of that table, whose tenant it then is. ``otherwise`` says the
    same of rows in which that field is empty. ``shared``: rows without
    a tenant are the platform's, which all tenants may read and none may change.
    Both walls are made of that.
    """

    def __init__(
        self,
        column: str = TENANT,
        *,
        via: str = "",
        shared: bool = False,
        otherwise: Walled[Any] | None = None,
    ) -> None:
        super().__init__()
        self.column, self._via, self.shared, self.otherwise = column, via, shared, otherwise

    def contribute_to_class(self, cls: type[models.Model], name: str) -> None:
        super().contribute_to_class(cls, name)
        # Managers of relations are made anew from this class, and ask the model.
        cls.wall = self  # type: ignore[attr-defined]

    @property
    def via(self) -> type[models.Model] | None:
        """The table that knows the tenant; None: this one does."""
        return apps.get_model(self._via) if self._via else None

    def get_queryset(self) -> models.QuerySet[M]:
        rows = super().get_queryset()
        if not walled_off():
            return rows
        tenant_id = tenant_here()
        if tenant_id is None:
            raise ScopeError(
                f"{self.model._meta.label} is asked for where no tenant was named. "  # noqa: SLF001
                "Make the view a @tenant_page, or say audit.walls.within(…) or across()."
            )
        return rows.filter(rows_of(self.model, tenant_id))


def rows_of(model: type[models.Model], tenant_id: UUID) -> Q:
    """The condition that a row is one that a tenant may read."""
    return _rows_behind(model.wall, tenant_id)  # type: ignore[attr-defined]


def _rows_behind(wall: Walled[Any], tenant_id: UUID) -> Q:
    if wall.via is not None:
        # Not by a join: rows that are found so can be locked, changed and deleted.
        owners = wall.via._base_manager.filter(rows_of(wall.via, tenant_id))  # noqa: SLF001
        rows = Q(**{f"{wall.column}__in": owners.order_by().values("pk")})
        if wall.otherwise is not None:
            rows |= Q(**{wall.column: None}) & _rows_behind(wall.otherwise, tenant_id)
        return rows
    own = Q(**{wall.column: tenant_id})
    return own | Q(**{wall.column: None}) if wall.shared else own
