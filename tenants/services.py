"""What is done to tenants: each function is one transaction with its audit event inside."""

from typing import Any

from django.db import transaction

from audit.recording import record
from tenants import generations
from tenants.models import Member, Team, Tenant, User


@transaction.atomic
def create_tenant(
    *,
    slug: str,
    name: str,
    actor: str,
    time_zone: str = "UTC",
    week_start: int = 1,
    allow_all_models: bool = False,
    models: list[str] | None = None,
    needs_second_factor: bool = False,
) -> Tenant:
    """Create a tenant; raises ``ValidationError`` for values it cannot have, such as a slug in use."""
    tenant = Tenant(
        slug=slug,
        name=name,
        time_zone=time_zone,
        week_start=week_start,
        needs_second_factor=needs_second_factor,
        allow_all_models=allow_all_models,
        models=models,
    )
    tenant.full_clean()
    tenant.save(force_insert=True)
    record(
        action="tenant.created",
        actor=actor,
        subject=str(tenant.pk),
        tenant_id=tenant.pk,
        slug=slug,
        name=name,
        time_zone=time_zone,
        week_start=week_start,
        allow_all_models=allow_all_models,
        models=models,
    )
    transaction.on_commit(generations.project_quietly)
    return tenant


@transaction.atomic
def change_tenant(*, tenant: Tenant, actor: str, **changes: Any) -> Tenant:
    """Give a tenant other settings, by the names of its fields; returns it as it is then.

    Raises ``ValidationError`` for values it cannot have.
    """
    tenant = Tenant.objects.select_for_update().get(pk=tenant.pk)
    before = {name: getattr(tenant, name) for name in changes}
    for name, value in changes.items():
        setattr(tenant, name, value)
    tenant.full_clean()
    tenant.save(update_fields=list(changes))
    record(
        action="tenant.changed",
        actor=actor,
        subject=str(tenant.pk),
        tenant_id=tenant.pk,
        slug=tenant.slug,
        before=before,
        after=changes,
    )
    transaction.on_commit(generations.project_quietly)
    return tenant


def suspend_tenant(*, tenant: Tenant, actor: str, reason: str) -> bool:
    """Refuse all keys of ``tenant``; return False if it was suspended already."""
    return _set_state(tenant, Tenant.State.SUSPENDED, action="tenant.suspended", actor=actor, reason=reason)


def resume_tenant(*, tenant: Tenant, actor: str, reason: str) -> bool:
    """Accept the keys of ``tenant`` again; return False if it was not suspended."""
    return _set_state(tenant, Tenant.State.ACTIVE, action="tenant.resumed", actor=actor, reason=reason)


@transaction.atomic
def _set_state(tenant: Tenant, state: Tenant.State, *, action: str, actor: str, reason: str) -> bool:
    changed = Tenant.objects.filter(pk=tenant.pk).exclude(state=state).update(state=state)
    if changed:
        record(
            action=action,
            actor=actor,
            subject=str(tenant.pk),
            tenant_id=tenant.pk,
            reason=reason,
            slug=tenant.slug,
        )
    transaction.on_commit(generations.project_quietly)
    return bool(changed)


@transaction.atomic
def create_user(
    *,
    username: str,
    email: str,
    actor: str,
    password: str | None = None,
    is_staff: bool = False,
    is_superuser: bool = False,
) -> User:
    """Create a person who can sign in; without a password they cannot until they are given one.

    Raises ``ValidationError`` for values a user cannot have, such as an e-mail address in use.
    """
    user = User(
        username=username,
        email=User.objects.normalize_email(email),
        is_staff=is_staff,
        is_superuser=is_superuser,
    )
    user.set_password(password)
    user.full_clean()
    user.save(force_insert=True)
    record(
        action="user.created",
        actor=actor,
        subject=str(user.pk),
        username=username,
        is_staff=is_staff,
        is_superuser=is_superuser,
    )
    return user


@transaction.atomic
def create_team(*, tenant: Tenant, name: str, actor: str) -> Team:
    """Create a team; raises ``ValidationError`` for a name the tenant has already."""
    team = Team(tenant=tenant, name=name)
    team.full_clean()
    team.save(force_insert=True)
    record(action="team.created", actor=actor, subject=str(team.pk), tenant_id=tenant.pk, name=name)
    transaction.on_commit(generations.project_quietly)
    return team


@transaction.atomic
def rename_team(*, team: Team, name: str, actor: str) -> Team:
    """Give a team another name; returns it as it is then."""
    team = Team.objects.select_for_update().get(pk=team.pk)
    before, team.name = team.name, name
    team.full_clean()
    team.save(update_fields=["name"])
    record(
        action="team.renamed",
        actor=actor,
        subject=str(team.pk),
        tenant_id=team.tenant_id,
        before=before,
        after=name,
    )
    transaction.on_commit(generations.project_quietly)
    return team


@transaction.atomic
def delete_team(*, team: Team, actor: str) -> None:
    """Delete a team; raises ``ProtectedError`` while anything belongs to it."""
    record(action="team.deleted", actor=actor, subject=str(team.pk), tenant_id=team.tenant_id, name=team.name)
    team.delete()
    transaction.on_commit(generations.project_quietly)


@transaction.atomic
def add_member(
    *, tenant: Tenant, user: User, actor: str, role: str = Member.Role.MEMBER, team: Team | None = None
) -> Member:
    """Make ``user`` a member of ``tenant``.

    Raises ``ValidationError`` if they are one already or the team is another tenant's.
    """
    member = Member(tenant=tenant, user=user, role=role, team=team)
    member.full_clean()
    member.save(force_insert=True)
    record(
        action="member.added",
        actor=actor,
        subject=str(member.pk),
        tenant_id=tenant.pk,
        user=user.username,
        role=role,
        team=team and team.pk,
    )
    transaction.on_commit(generations.project_quietly)
    return member


@transaction.atomic
def change_member(*, member: Member, actor: str, role: str, team: Team | None) -> Member:
    """Give a member a role and a team (or none); returns the member as it is then."""
    member = Member.objects.select_for_update(of=["self"]).select_related("user").get(pk=member.pk)
    before = {"role": member.role, "team": member.team_id}
    member.role, member.team = role, team
    member.full_clean()
    member.save(update_fields=["role", "team"])
    record(
        action="member.changed",
        actor=actor,
        subject=str(member.pk),
        tenant_id=member.tenant_id,
        user=member.user.username,
        before=before,
        after={"role": role, "team": member.team_id},
    )
    transaction.on_commit(generations.project_quietly)
    return member


@transaction.atomic
def remove_member(*, member: Member, actor: str) -> None:
    """End a membership; raises ``ProtectedError`` while the member has keys, revoked ones included."""
    record(
        action="member.removed",
        actor=actor,
        subject=str(member.pk),
        tenant_id=member.tenant_id,
        user=member.user.username,
    )
    member.delete()
    transaction.on_commit(generations.project_quietly)
