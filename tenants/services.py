"""What is done to tenants: each function is one transaction with its audit event inside."""

from collections.abc import Iterable
from typing import Any

from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import transaction
from django.dispatch import Signal
from django.utils.timezone import now
from django.utils.translation import gettext as _

from audit.recording import record
from tenants import generations
from tenants.leaving import member_leaves, service_account_closes
from tenants.models import Member, ServiceAccount, Team, Tenant, User


@transaction.atomic
def create_tenant(
    *,
    slug: str,
    name: str,
    actor: str,
    time_zone: str = "UTC",
    language: str = "",
    week_start: int = 1,
    allow_all_models: bool = False,
    models: list[str] | None = None,
    needs_second_factor: bool = False,
    max_key_days: int | None = None,
) -> Tenant:
    """Create a tenant; raises ``ValidationError`` for values it cannot have, such as a slug in use."""
    tenant = Tenant(
        slug=slug,
        name=name,
        time_zone=time_zone,
        language=language,
        week_start=week_start,
        needs_second_factor=needs_second_factor,
        max_key_days=max_key_days,
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
        language=language,
        week_start=week_start,
        allow_all_models=allow_all_models,
        models=models,
        max_key_days=max_key_days,
    )
    transaction.on_commit(generations.project_quietly)
    return tenant


@transaction.atomic
def change_tenant(*, tenant: Tenant, actor: str, **changes: Any) -> Tenant:
    """Give a tenant other settings, by the names of its fields; returns it as it is then.

    Raises ``ValidationError`` for values it cannot have. A repeat records nothing.
    """
    tenant = Tenant.objects.select_for_update().get(pk=tenant.pk)
    before = {name: getattr(tenant, name) for name in changes}
    if changes == before:
        return tenant
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
def change_person(
    *, user: User, first_name: str, last_name: str, language: str, time_zone: str, actor: str
) -> User:
    """Change how a person is called, and how the portal speaks to them; returns them as they are then.

    ``language`` is one of ``settings.LANGUAGES``, or empty for the browser's;
    ``time_zone`` is one that there is, or empty for each tenant's own. Raises
    ``ValidationError`` for others. A repeat records nothing.
    """
    user = User.objects.select_for_update().get(pk=user.pk)
    wanted = {
        "first_name": first_name,
        "last_name": last_name,
        "language": language,
        "time_zone": time_zone,
    }
    before = {name: getattr(user, name) for name in wanted}
    if wanted == before:
        return user
    if language and language not in dict(settings.LANGUAGES):
        raise ValidationError({"language": f"{language!r} is no language of the portal."})
    for name, value in wanted.items():
        setattr(user, name, value)
    # Whoever signs in elsewhere has no password.
    user.clean_fields(exclude=["password"])
    user.save(update_fields=list(wanted))
    record(
        action="user.changed",
        actor=actor,
        subject=str(user.pk),
        username=user.username,
        before={name: value for name, value in before.items() if value != wanted[name]},
        after={name: value for name, value in wanted.items() if value != before[name]},
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
    """Delete a team and its limits; raises ``ProtectedError`` while anybody belongs to it.

    Raises ``Team.DoesNotExist`` if somebody else was quicker.
    """
    # Whoever is being put into it is waited for, and then belongs to it.
    team = Team.objects.select_for_update().get(pk=team.pk)
    record(action="team.deleted", actor=actor, subject=str(team.pk), tenant_id=team.tenant_id, name=team.name)
    team.delete()
    transaction.on_commit(generations.project_quietly)


@transaction.atomic
def put_into_team(
    *, team: Team, actor: str, members: Iterable[Member] = (), accounts: Iterable[ServiceAccount] = ()
) -> int:
    """Put members and service accounts of the tenant into a team, out of another if they were in one.

    Returns how many were not in it already; who is gone meanwhile counts as one
    who was. Raises ``ValidationError`` for those of another tenant, and if the
    team is gone.
    """
    _keep_team(team)
    return _move(members, accounts, actor, into=team, out_of=None)


@transaction.atomic
def take_out_of_team(
    *, team: Team, actor: str, members: Iterable[Member] = (), accounts: Iterable[ServiceAccount] = ()
) -> int:
    """Take members and service accounts out of a team; returns how many were still in it."""
    return _move(members, accounts, actor, into=None, out_of=team)


def _move(
    members: Iterable[Member],
    accounts: Iterable[ServiceAccount],
    actor: str,
    *,
    into: Team | None,
    out_of: Team | None,
) -> int:
    """Change nothing of them but the team, and only of those whose team is another one."""
    member_ids, account_ids = [one.pk for one in members], [one.pk for one in accounts]
    people = Member.objects.select_for_update(of=["self"]).select_related("user")
    programs = ServiceAccount.objects.select_for_update()
    rows: list[Member | ServiceAccount] = [
        *people.filter(pk__in=member_ids).order_by("pk"),
        *programs.filter(pk__in=account_ids, closed_at=None).order_by("pk"),
    ]
    wanted = None if into is None else into.pk
    there = [row for row in rows if row.team_id != wanted and (out_of is None or row.team_id == out_of.pk)]
    for row in there:
        before, row.team = row.team_id, into
        row.full_clean()
        row.save(update_fields=["team"])
        kind = "member" if isinstance(row, Member) else "service_account"
        name = {"user": row.user.username} if isinstance(row, Member) else {"name": row.name}
        record(
            action=f"{kind}.changed",
            actor=actor,
            subject=str(row.pk),
            tenant_id=row.tenant_id,
            **name,
            before={"team": before},
            after={"team": row.team_id},
        )
    transaction.on_commit(generations.project_quietly)
    return len(there)


def _keep_team(team: Team | None) -> None:
    """Keep a team from being deleted until this transaction ends; ``ValidationError`` if it is gone."""
    # The database looks for it when the transaction ends, which is too late to say what is wrong.
    if team is not None and not Team.objects.select_for_update(no_key=True).filter(pk=team.pk).exists():
        raise ValidationError(_("This team is not there any more."), code="no_team")


@transaction.atomic
def add_member(
    *, tenant: Tenant, user: User, actor: str, role: str = Member.Role.MEMBER, team: Team | None = None
) -> Member:
    """Make ``user`` a member of ``tenant``.

    Raises ``ValidationError`` if they are one already or the team is another tenant's.
    """
    _keep_team(team)
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
    """Give a member a role and a team (or none); returns the member as it is then.

    Raises ``ValidationError`` if the team is another tenant's, or the tenant would have no owner left.
    """
    if role != Member.Role.OWNER:
        _keep_an_owner(member)
    _keep_team(team)
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
def remove_member(*, member: Member, actor: str) -> int:
    """End a membership and revoke the member's own keys; return how many keys were revoked by that.

    The keys stay, as the tenant's, for their history. Raises ``ValidationError``
    if the tenant would have no owner left.
    """
    _keep_an_owner(member)
    # Locked, so that no key is issued to them meanwhile.
    member = Member.objects.select_for_update(of=["self"]).select_related("user").get(pk=member.pk)
    revoked = _tell(member_leaves, member=member, actor=actor)
    record(
        action="member.removed",
        actor=actor,
        subject=str(member.pk),
        tenant_id=member.tenant_id,
        user=member.user.username,
        role=member.role,
        revoked_keys=revoked,
    )
    member.delete()
    transaction.on_commit(generations.project_quietly)
    return revoked


def _keep_an_owner(member: Member) -> None:
    """Raise ``ValidationError`` if ``member`` is the only owner of the tenant who can sign in."""
    # Of two owners who leave at the same moment the second waits here, and then is the last.
    Tenant.objects.select_for_update(no_key=True).get(pk=member.tenant_id)
    owners = Member.objects.filter(tenant=member.tenant_id, role=Member.Role.OWNER)
    if owners.filter(pk=member.pk).exists():
        others = owners.exclude(pk=member.pk).filter(user__is_active=True)
        if not others.exists():
            sentence = _("%(person)s is the only owner. Somebody else has to become one first.")
            raise ValidationError(sentence % {"person": member.user}, code="last_owner")


@transaction.atomic
def create_service_account(
    *, tenant: Tenant, name: str, actor: str, team: Team | None = None
) -> ServiceAccount:
    """Create a service account.

    Raises ``ValidationError`` for a name that another open one of the tenant
    has, and for another tenant's team.
    """
    _keep_team(team)
    account = ServiceAccount(tenant=tenant, name=name, team=team)
    account.full_clean()
    account.save(force_insert=True)
    record(
        action="service_account.created",
        actor=actor,
        subject=str(account.pk),
        tenant_id=tenant.pk,
        name=name,
        team=team and team.pk,
    )
    transaction.on_commit(generations.project_quietly)
    return account


@transaction.atomic
def change_service_account(
    *, account: ServiceAccount, actor: str, name: str, team: Team | None
) -> ServiceAccount:
    """Give a service account a name and a team (or none); returns it as it is then.

    Raises ``ValidationError`` for a name that another open one has, and for another tenant's team.
    """
    _keep_team(team)
    account = ServiceAccount.objects.select_for_update().get(pk=account.pk)
    before = {"name": account.name, "team": account.team_id}
    account.name, account.team = name, team
    account.full_clean()
    account.save(update_fields=["name", "team"])
    record(
        action="service_account.changed",
        actor=actor,
        subject=str(account.pk),
        tenant_id=account.tenant_id,
        before=before,
        after={"name": name, "team": account.team_id},
    )
    transaction.on_commit(generations.project_quietly)
    return account


@transaction.atomic
def close_service_account(*, account: ServiceAccount, actor: str, reason: str) -> int | None:
    """Close a service account for good and revoke its keys; return how many keys were revoked by that.

    None if it was closed already.
    """
    # Locked, so that no key is issued to it meanwhile.
    account = ServiceAccount.objects.select_for_update().get(pk=account.pk)
    if account.closed_at is not None:
        return None
    revoked = _tell(service_account_closes, account=account, actor=actor)
    team = account.team_id
    # Let go, so that a team with nobody left can be deleted.
    account.closed_at, account.team = now(), None
    account.save(update_fields=["closed_at", "team"])
    record(
        action="service_account.closed",
        actor=actor,
        subject=str(account.pk),
        tenant_id=account.tenant_id,
        reason=reason,
        name=account.name,
        team=team,
        revoked_keys=revoked,
    )
    transaction.on_commit(generations.project_quietly)
    return revoked


def _tell(signal: Signal, **what: Any) -> int:
    """Let those above this app do their part within the transaction; how many keys they revoked."""
    told: list[tuple[Any, Any]] = signal.send(sender=None, **what)
    return sum(revoked for _receiver, revoked in told)
