import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from uuid import UUID

import pytest
import time_machine
from django.core.exceptions import ValidationError
from django.db import IntegrityError, connection, transaction
from django.db.models import ProtectedError

from audit.models import AuditEvent
from tenants import services
from tenants.ids import new_id
from tenants.models import Member, Team, Tenant, User


@pytest.fixture
def acme(db):
    return services.create_tenant(slug="acme", name="ACME", actor="root")


@pytest.fixture
def globex(db):
    return services.create_tenant(slug="globex", name="Globex", actor="root")


@pytest.fixture
def ada(db):
    return services.create_user(username="ada", email="Ada@Example.org", actor="root")


def recorded():
    return list(AuditEvent.objects.order_by("id").values_list("action", "actor"))


def test_an_id_is_a_uuid_of_version_7_of_its_millisecond():
    with time_machine.travel(datetime(2026, 11, 21, 4, 30, 0, 123000, UTC), tick=False):
        made = new_id()

    assert made.version == 7
    assert made.variant == "specified in RFC 4122"
    assert made.int >> 80 == 1_795_235_400_123


def test_newer_ids_sort_after_older_ones():
    with time_machine.travel(0, tick=False) as clock:
        ids = []
        for _ in range(100):
            ids.append(new_id())
            clock.shift(0.001)

    assert ids == sorted(ids, key=str)
    assert len(set(ids)) == 100


def test_ids_of_one_millisecond_differ():
    with time_machine.travel(0, tick=False):
        assert len({new_id() for _ in range(10_000)}) == 10_000


def test_a_tenant_is_active_and_allows_nothing_at_first(acme):
    acme.refresh_from_db()

    assert isinstance(acme.pk, UUID)
    assert (acme.state, acme.time_zone, acme.week_start) == ("active", "UTC", 1)
    assert (acme.allow_all_models, acme.models) == (False, None)
    assert recorded() == [("tenant.created", "root")]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("slug", ""),
        ("slug", "Acme"),
        ("slug", "-acme"),
        ("slug", "ac me"),
        ("slug", "acme\n"),
        ("slug", "\uff41cme"),
        ("name", ""),
        ("time_zone", "Mars/Olympus"),
        ("time_zone", "../../etc/passwd"),
        ("language", "tlh"),
        ("week_start", 0),
        ("week_start", 8),
        ("models", [""]),
    ],
)
@pytest.mark.django_db
def test_a_tenant_with_an_impossible_value_is_refused(field, value):
    with pytest.raises(ValidationError) as refused:
        services.create_tenant(**{"slug": "acme", "name": "ACME", "actor": "root", field: value})

    assert field in str(refused.value) or field == "week_start"
    assert not Tenant.objects.exists()
    assert not AuditEvent.objects.exists()


@pytest.mark.parametrize(
    ("constraint", "values"),
    [
        ("tenants_tenant_slug_is_plain", {"slug": "ac me"}),
        ("tenants_tenant_slug_is_plain", {"slug": "acme\n"}),
        ("tenants_tenant_state_is_known", {"state": "asleep"}),
        ("tenants_tenant_week_starts_on_a_day", {"week_start": 8}),
        ("tenants_tenant_slug_once", {"slug": "globex"}),
    ],
)
def test_the_database_keeps_the_facts_about_tenants(constraint, values, acme, globex):
    with pytest.raises(IntegrityError, match=constraint):
        Tenant.objects.filter(pk=acme.pk).update(**values)


def test_two_tenants_cannot_have_one_slug(acme):
    with pytest.raises(ValidationError, match="Another tenant has this slug"):
        services.create_tenant(slug="acme", name="Another", actor="root")


def test_a_change_of_a_tenant_is_recorded_with_before_and_after(acme):
    services.change_tenant(tenant=acme, actor="ada", time_zone="Europe/Berlin", models=[])
    services.change_tenant(tenant=acme, actor="ben", time_zone="Europe/Berlin", models=[])

    acme.refresh_from_db()
    event = AuditEvent.objects.all()[0]
    assert (acme.time_zone, acme.models) == ("Europe/Berlin", [])
    assert (event.action, event.actor, event.tenant_id) == ("tenant.changed", "ada", acme.pk)
    assert event.details["before"] == {"time_zone": "UTC", "models": None}
    assert event.details["after"] == {"time_zone": "Europe/Berlin", "models": []}


def test_a_tenant_is_suspended_and_resumed_once_each(acme):
    assert services.suspend_tenant(tenant=acme, actor="ada", reason="unpaid") is True
    assert services.suspend_tenant(tenant=acme, actor="ada", reason="unpaid") is False
    acme.refresh_from_db()
    assert acme.state == "suspended"

    assert services.resume_tenant(tenant=acme, actor="ada", reason="paid") is True
    assert services.resume_tenant(tenant=acme, actor="ada", reason="paid") is False
    acme.refresh_from_db()
    assert acme.state == "active"

    assert [action for action, _ in recorded()] == ["tenant.created", "tenant.suspended", "tenant.resumed"]


@pytest.mark.parametrize("address", ["ada@example.org", "ADA@EXAMPLE.ORG"])
def test_an_e_mail_address_belongs_to_one_user_in_any_letter_case(address, ada):
    with pytest.raises(ValidationError, match="Another user has this e-mail address"):
        services.create_user(username="other", email=address, actor="root")
    with pytest.raises(IntegrityError, match="tenants_user_email_once"):
        User.objects.create(username="other", email=address)


@pytest.mark.django_db
def test_any_number_of_users_may_have_no_e_mail_address():
    services.create_user(username="one", email="", actor="root")
    services.create_user(username="two", email="", actor="root")

    assert User.objects.filter(email="").count() == 2


def test_a_user_without_a_password_cannot_sign_in(ada):
    assert not ada.has_usable_password()
    assert "password" not in str(AuditEvent.objects.get().details)


def test_a_member_has_one_place_in_a_tenant(acme, ada):
    team = services.create_team(tenant=acme, name="Research", actor="root")
    member = services.add_member(tenant=acme, user=ada, role="owner", team=team, actor="root")

    assert str(member) == "ada at acme"
    with pytest.raises(ValidationError, match="a member of this tenant already"):
        services.add_member(tenant=acme, user=ada, actor="root")
    assert Member.objects.get().role == "owner"


def test_a_member_is_never_in_the_team_of_another_tenant(acme, globex, ada):
    foreign = services.create_team(tenant=globex, name="Research", actor="root")
    with pytest.raises(ValidationError, match="belongs to another tenant"):
        services.add_member(tenant=acme, user=ada, team=foreign, actor="root")

    member = services.add_member(tenant=acme, user=ada, actor="root")
    with pytest.raises(ValidationError, match="belongs to another tenant"):
        services.change_member(member=member, role="member", team=foreign, actor="root")
    Member.objects.filter(pk=member.pk).update(team=foreign)
    with (
        pytest.raises(IntegrityError, match="tenants_member_team_of_same_tenant"),
        transaction.atomic(),
        connection.cursor() as cursor,
    ):
        cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
    Member.objects.filter(pk=member.pk).update(team=None)


def test_a_role_that_nobody_knows_is_refused(acme, ada):
    with pytest.raises(ValidationError):
        services.add_member(tenant=acme, user=ada, role="king", actor="root")
    with pytest.raises(IntegrityError, match="tenants_member_role_is_known"):
        Member.objects.create(tenant=acme, user=ada, role="king")


def test_what_happens_to_teams_and_members_is_recorded(acme, ada):
    team = services.create_team(tenant=acme, name="Research", actor="root")
    services.rename_team(team=team, name="Lab", actor="root")
    member = services.add_member(tenant=acme, user=ada, actor="root")
    services.change_member(member=member, role="admin", team=team, actor="root")
    with pytest.raises(ProtectedError):
        services.delete_team(team=team, actor="root")
    services.remove_member(member=member, actor="root")
    services.delete_team(team=team, actor="root")

    assert not Team.objects.exists()
    assert not Member.objects.exists()
    assert [action for action, _ in recorded()][2:] == [
        "team.created",
        "team.renamed",
        "member.added",
        "member.changed",
        "member.removed",
        "team.deleted",
    ]
    assert all(AuditEvent.objects.exclude(action="user.created").values_list("tenant_id", flat=True))


@pytest.mark.django_db(transaction=True)
def test_of_two_who_take_one_slug_at_once_one_gets_it():
    start = threading.Barrier(2)

    def create(actor):
        try:
            start.wait(10)
            services.create_tenant(slug="acme", name="ACME", actor=actor)
        except (ValidationError, IntegrityError):
            return False
        else:
            return True
        finally:
            connection.close()

    with ThreadPoolExecutor(2) as people:
        created = list(people.map(create, ["ada", "eve"]))

    assert sorted(created) == [False, True]
    assert Tenant.objects.count() == 1
    assert AuditEvent.objects.count() == 1
