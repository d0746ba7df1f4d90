import pytest
from django.contrib.auth.models import Group, Permission
from django.urls import reverse

from audit.models import AuditEvent
from tenants import services
from tenants.models import Member, Team, Tenant, User

pytestmark = pytest.mark.django_db


@pytest.fixture
def acme():
    return services.create_tenant(slug="acme", name="ACME", actor="root")


@pytest.fixture
def ada():
    return services.create_user(username="ada", email="ada@example.org", actor="root")


def page(model, name, *arguments):
    return reverse(f"admin:tenants_{model}_{name}", args=arguments)


def tenant_form(**fields):
    usual = {
        "slug": "acme",
        "name": "ACME",
        "time_zone": "UTC",
        "week_start": "1",
        "may_call": "silent",
        "listed": "",
    }
    return usual | fields


def newest_event():
    event = AuditEvent.objects.all()[0]
    return event.action, event.actor


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({"may_call": "silent"}, (False, None)),
        ({"may_call": "all"}, (True, None)),
        ({"may_call": "listed", "listed": "tiny:latest"}, (False, ["tiny:latest"])),
        ({"may_call": "listed"}, (False, [])),
    ],
)
def test_a_tenant_is_added_through_the_service(answer, expected, admin_client):
    response = admin_client.post(page("tenant", "add"), tenant_form(**answer))

    tenant = Tenant.objects.get()
    assert response.status_code == 302
    assert (tenant.slug, tenant.allow_all_models, tenant.models) == ("acme", *expected)
    assert newest_event() == ("tenant.created", "admin")


def test_a_change_of_a_tenant_records_what_was_changed(admin_client, acme):
    admin_client.post(page("tenant", "change", acme.pk), tenant_form(time_zone="Asia/Tokyo"))

    acme.refresh_from_db()
    event = AuditEvent.objects.all()[0]
    assert acme.time_zone == "Asia/Tokyo"
    assert (event.action, event.actor) == ("tenant.changed", "admin")
    assert (event.details["before"], event.details["after"]) == (
        {"time_zone": "UTC"},
        {"time_zone": "Asia/Tokyo"},
    )


def test_saving_a_tenant_without_a_change_records_nothing(admin_client, acme):
    before = AuditEvent.objects.count()

    admin_client.post(page("tenant", "change", acme.pk), tenant_form())

    assert AuditEvent.objects.count() == before


def test_impossible_values_of_a_tenant_are_told_beside_the_field(admin_client, acme):
    response = admin_client.post(page("tenant", "add"), tenant_form(time_zone="Mars", week_start="9"))

    errors = response.context["adminform"].form.errors
    assert {"time_zone", "slug"} & set(errors)
    assert "A week starts on a day" in str(errors)
    assert Tenant.objects.count() == 1


@pytest.mark.parametrize(
    ("action", "before", "after"), [("suspend", "active", "suspended"), ("resume", "suspended", "active")]
)
def test_tenants_are_suspended_and_resumed_with_a_reason(action, before, after, admin_client, acme):
    Tenant.objects.update(state=before)
    chosen = {"action": action, "_selected_action": [str(acme.pk)]}

    admin_client.post(page("tenant", "changelist"), chosen)
    acme.refresh_from_db()
    assert acme.state == before

    admin_client.post(page("tenant", "changelist"), chosen | {"reason": "unpaid"})
    acme.refresh_from_db()
    assert acme.state == after
    assert AuditEvent.objects.all()[0].reason == "unpaid"


def test_teams_and_members_are_kept_through_the_services(admin_client, acme, ada):
    admin_client.post(page("team", "add"), {"tenant": acme.pk, "name": "Research"})
    team = Team.objects.get()
    assert newest_event() == ("team.created", "admin")

    admin_client.post(page("team", "change", team.pk), {"name": "Lab"})
    assert newest_event() == ("team.renamed", "admin")
    assert AuditEvent.objects.all()[0].details == {"before": "Research", "after": "Lab"}

    admin_client.post(page("member", "add"), {"tenant": acme.pk, "user": ada.pk, "role": "member"})
    member = Member.objects.get()
    assert newest_event() == ("member.added", "admin")

    admin_client.post(page("member", "change", member.pk), {"role": "admin", "team": team.pk})
    member.refresh_from_db()
    assert (member.role, member.team) == ("admin", team)
    assert newest_event() == ("member.changed", "admin")

    admin_client.post(page("member", "delete", member.pk), {"post": "yes"})
    assert newest_event() == ("member.removed", "admin")
    admin_client.post(
        page("team", "changelist"),
        {"action": "delete_selected", "_selected_action": [team.pk], "post": "yes"},
    )
    assert newest_event() == ("team.deleted", "admin")
    assert not Team.objects.exists()


def test_disabling_a_user_is_recorded(admin_client, ada):
    fields = {
        "username": "ada",
        "email": "ada@example.org",
        "date_joined_0": "2026-01-01",
        "date_joined_1": "00:00:00",
    }

    response = admin_client.post(page("user", "change", ada.pk), fields)

    ada.refresh_from_db()
    event = AuditEvent.objects.all()[0]
    assert response.status_code == 302
    assert not ada.is_active
    assert (event.action, event.actor, event.subject) == ("user.changed", "admin", str(ada.pk))
    assert event.details["is_active"] is False
    assert event.details["before"] == {"is_active": True}


def test_what_somebody_is_given_is_recorded_with_what_they_had(admin_client, ada):
    may_view, may_kill = (Permission.objects.get(codename=name) for name in ("view_tenant", "add_killswitch"))
    ada.user_permissions.add(may_view)
    fields = {
        "username": "ada", "email": "ada@example.org", "is_active": "on", "is_staff": "on",
        "date_joined_0": "2026-01-01", "date_joined_1": "00:00:00", "user_permissions": [may_kill.pk],
    }  # fmt: skip

    assert admin_client.post(page("user", "change", ada.pk), fields).status_code == 302

    details = AuditEvent.objects.all()[0].details
    assert (details["is_staff"], details["permissions"]) == (True, [str(may_kill)])
    assert details["before"] == {"is_staff": False, "permissions": [str(may_view)]}


def test_what_a_group_may_is_recorded_with_what_it_might(admin_client):
    may_view, may_kill = (Permission.objects.get(codename=name) for name in ("view_tenant", "add_killswitch"))
    group = Group.objects.create(name="Night shift")
    group.permissions.add(may_view)

    sent = admin_client.post(
        reverse("admin:auth_group_change", args=[group.pk]),
        {"name": "Night shift", "permissions": [may_kill.pk]},
    )

    details = AuditEvent.objects.all()[0].details
    assert sent.status_code == 302
    assert (details["permissions"], details["before"]) == ([str(may_kill)], {"permissions": [str(may_view)]})


def test_a_new_password_is_recorded_and_not_what_it_is(admin_client, ada):
    password = "correct horse battery staple"

    admin_client.post(
        reverse("admin:auth_user_password_change", args=[ada.pk]),
        {"password1": password, "password2": password, "usable_password": "true"},
    )

    ada.refresh_from_db()
    assert ada.check_password(password)
    assert newest_event() == ("user.changed", "admin")
    assert password not in str(AuditEvent.objects.all()[0].details)


def test_adding_a_user_and_a_group_is_recorded(admin_client):
    password = "correct horse battery staple"
    admin_client.post(
        page("user", "add"),
        {"username": "eve", "usable_password": "true", "password1": password, "password2": password},
    )
    assert newest_event() == ("user.added", "admin")
    assert User.objects.get(username="eve").check_password(password)

    admin_client.post(reverse("admin:auth_group_add"), {"name": "operators"})
    assert newest_event() == ("group.added", "admin")
    admin_client.post(reverse("admin:auth_group_delete", args=[Group.objects.get().pk]), {"post": "yes"})
    assert newest_event() == ("group.deleted", "admin")
    assert not Group.objects.exists()


@pytest.mark.parametrize("model", ["tenant", "user"])
def test_tenants_and_users_are_never_deleted(model, admin_client, acme, ada):
    row = {"tenant": acme, "user": ada}[model]

    assert admin_client.post(page(model, "delete", row.pk), {"post": "yes"}).status_code == 403
    admin_client.post(
        page(model, "changelist"), {"action": "delete_selected", "_selected_action": [row.pk], "post": "yes"}
    )

    assert Tenant.objects.count() == 1
    assert User.objects.filter(pk=ada.pk).exists()


@pytest.mark.parametrize("model", ["tenant", "team", "member", "user"])
def test_lists_forms_and_searches_open(model, admin_client, acme, ada):
    team = services.create_team(tenant=acme, name="Research", actor="root")
    member = services.add_member(tenant=acme, user=ada, team=team, actor="root")
    row = {"tenant": acme, "team": team, "member": member, "user": ada}[model]

    assert admin_client.get(page(model, "changelist"), {"q": "a"}).status_code == 200
    assert admin_client.get(page(model, "add")).status_code == 200
    assert admin_client.get(page(model, "change", row.pk)).status_code == 200


@pytest.mark.parametrize(("model", "field"), [("team", "tenant"), ("member", "user"), ("member", "team")])
def test_menus_are_searched_and_not_listed_whole(model, field, admin_client, acme, ada):
    services.create_team(tenant=acme, name="a team", actor="root")

    found = admin_client.get(
        reverse("admin:autocomplete"),
        {"app_label": "tenants", "model_name": model, "field_name": field, "term": "a"},
    )

    assert found.status_code == 200
    assert found.json()["results"]
