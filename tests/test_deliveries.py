"""Notices on their way: signed webhooks, e-mail, back-off, and where a webhook may not lead."""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
import json
import socket
import threading
from datetime import timedelta
from io import StringIO
from typing import Any

import pytest
from django.core.exceptions import ValidationError
from django.core.management import CommandError, call_command
from django.db import connection
from django.test import Client, override_settings
from django.utils.timezone import now
from hypothesis import given
from hypothesis import strategies as st

from audit.models import AuditEvent
from budgets import deliveries, services, webhooks
from budgets.alone import alone
from budgets.deliveries import FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, MOST_ATTEMPTS, pause_seconds
from budgets.exceptions import NotDelivered
from budgets.models import Delivery, Notice, Recipient
from budgets.notices import tell
from tenants.models import Tenant, User
from tenants.services import create_tenant
from tests.receivers import HttpReceiver, MailServer

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def acme() -> Tenant:
    return create_tenant(slug="acme", name="ACME", actor="test")


def webhook(url: str, **options: Any) -> Recipient:
    return services.add_recipient(kind="webhook", address=url, actor="test", **options)


def something_happens(tenant: Tenant | None = None, **changes: Any) -> Notice | None:
    fields: dict[str, Any] = {
        "happening": "threshold",
        "subject": "a budget",
        "values": {
            "threshold": 80, "used": 800, "limit": 1000, "shadow": False, "refused": 0,
            "period_start": "2026-11-01T00:00:00+00:00", "period_end": "2026-12-01T00:00:00+00:00",
            "stops": {"scope": "platform", "name": "", "tenant": ""}, "until": "2026-12-01T00:00:00+00:00",
            "budget": {"scope": "tenant", "name": "", "tenant": "acme", "unit": "tokens", "length": "day"},
        },
        "facts": {"threshold": 80},
        "threshold": 80,
        "tenant_id": tenant and tenant.pk,
        "tenant": tenant.slug if tenant else "",
    }  # fmt: skip
    return tell(**(fields | changes))


def due_again() -> None:
    Delivery.objects.update(next_at=now() - timedelta(seconds=1))


def test_a_webhook_is_signed_so_that_its_receiver_can_verify_it(http: HttpReceiver, acme: Tenant) -> None:
    secret = webhooks.secret_of(webhook(http.url, tenant=acme))
    something_happens(acme)

    assert deliveries.deliver() == 1

    (post,) = http.received
    # What docs/alerts.md tells receivers to do.
    signed = f"{post.headers['webhook-id']}.{post.headers['webhook-timestamp']}.".encode() + post.body
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signature = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    assert post.headers["webhook-signature"] == f"v1,{signature}"
    assert abs(int(post.headers["webhook-timestamp"]) - now().timestamp()) < 60
    assert post.headers["content-type"] == "application/json"
    assert post.headers["host"] == f"127.0.0.1:{http.port}"
    assert post.path == "/hook/secret-part?key=secret-too"
    told = json.loads(post.body)
    assert told["text"] == "80 % of tenant acme's tokens per day is used: 800 of 1,000."
    assert (told["happening"], told["tenant"], told["threshold"]) == ("threshold", "acme", 80)
    delivery = Delivery.objects.get()
    assert str(delivery.pk) == post.headers["webhook-id"]
    assert (delivery.state, delivery.to) == ("delivered", "webhook 127.0.0.1")
    assert delivery.attempts[0]["status"] == 200


def test_what_was_delivered_is_not_sent_again(http: HttpReceiver) -> None:
    webhook(http.url)
    something_happens()
    deliveries.deliver()
    due_again()

    assert deliveries.deliver() == 0

    assert len(http.received) == 1


def test_what_failed_is_sent_again_later_with_the_same_id_and_body(http: HttpReceiver) -> None:
    webhook(http.url)
    http.statuses = [500, 302, 200]
    something_happens()

    deliveries.deliver()
    assert deliveries.deliver() == 0, "it is not due yet"
    assert len(http.received) == 1
    for _ in range(2):
        due_again()
        deliveries.deliver()

    assert len({(post.headers["webhook-id"], post.body) for post in http.received}) == 1
    # A redirect was not followed.
    assert [post.path for post in http.received] == 3 * ["/hook/secret-part?key=secret-too"]
    delivery = Delivery.objects.get()
    assert [attempt["status"] for attempt in delivery.attempts] == [500, 302, 200]
    assert delivery.attempts[0]["error"] == "the receiver answered 500"
    assert (delivery.state, delivery.begun) == ("delivered", 3)


def test_after_the_last_attempt_a_delivery_is_dead(http: HttpReceiver) -> None:
    webhook(http.url)
    http.statuses = [503]
    something_happens()

    for _ in range(MOST_ATTEMPTS + 2):
        due_again()
        deliveries.deliver()

    delivery = Delivery.objects.get()
    assert (delivery.state, len(delivery.attempts)) == ("dead", MOST_ATTEMPTS)
    assert len(http.received) == MOST_ATTEMPTS


def test_an_attempt_whose_process_died_is_made_again(http: HttpReceiver) -> None:
    webhook(http.url)
    something_happens()
    claimed = deliveries._claim()
    assert [one.begun for one in claimed] == [1]
    assert deliveries.deliver() == 0, "nobody else makes the same attempt"

    due_again()

    assert deliveries.deliver() == 1
    assert Delivery.objects.get().begun == 2


def test_a_delivery_whose_last_attempt_nobody_tells_the_end_of_is_dead(http: HttpReceiver) -> None:
    webhook(http.url)
    something_happens()
    Delivery.objects.update(begun=MOST_ATTEMPTS)

    deliveries.deliver()

    assert Delivery.objects.get().state == "dead"
    assert http.received == []


def test_one_process_sends_at_a_time(http: HttpReceiver) -> None:
    webhook(http.url)
    something_happens()
    found: list[int] = []

    def another() -> None:
        found.append(deliveries.deliver())
        connection.close()

    with alone(deliveries.LOCK) as only:
        thread = threading.Thread(target=another)
        thread.start()
        thread.join()

    assert only
    assert found == [0]
    assert deliveries.deliver() == 1


@given(st.integers(1, MOST_ATTEMPTS))
def test_pauses_grow_and_are_bounded(begun: int) -> None:
    pause = pause_seconds(begun)

    assert FIRST_PAUSE_SECONDS <= pause <= 1.25 * LONGEST_PAUSE_SECONDS
    assert pause <= 1.25 * FIRST_PAUSE_SECONDS * 2 ** (begun - 1)
    assert pause >= min(0.75 * FIRST_PAUSE_SECONDS * 2 ** (begun - 1), 0.75 * LONGEST_PAUSE_SECONDS)


def test_a_receiver_that_never_answers_is_left_after_a_while(
    http: HttpReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "TOTAL_SECONDS", 0.3)
    webhook(http.url)
    http.stall = True
    something_happens()

    deliveries.deliver()

    assert "within 0.3 s" in Delivery.objects.get().attempts[0]["error"]


def test_a_receiver_that_always_says_there_is_more_to_come_is_left_after_a_while(
    http: HttpReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "TOTAL_SECONDS", 0.5)
    webhook(http.url)
    http.drip = True
    something_happens()

    deliveries.deliver()

    assert "within 0.5 s" in Delivery.objects.get().attempts[0]["error"]


def test_one_that_fails_keeps_no_other_from_being_told(http: HttpReceiver, mail: MailServer) -> None:
    webhook("http://127.0.0.1:9/nobody-listens")
    webhook(http.url)
    services.add_recipient(kind="email", address="ada@acme.test", actor="test")
    something_happens()

    assert deliveries.deliver() == 2

    assert (len(http.received), len(mail.mails)) == (1, 1)
    failed = Delivery.objects.exclude(state="delivered").get()
    assert failed.attempts[0]["error"] == "no connection: Connection refused"


def test_an_e_mail_says_what_happened_and_can_be_known_as_a_repeat(mail: MailServer, acme: Tenant) -> None:
    services.add_recipient(kind="email", address="ada@acme.test", tenant=acme, actor="test")
    something_happens(
        acme,
        happening="kill_switch_armed",
        values={
            "stops": {"scope": "key", "name": "k\r\nBcc: eve@evil.test\r\n", "tenant": "acme"},
            "until": "2026-12-01T11:00:00+00:00",
        },
    )

    assert deliveries.deliver() == 1

    (sent,) = mail.mails
    assert sent.recipients == ["ada@acme.test"]
    assert sent.message["Subject"] == (
        "[Tollgate] A kill switch stops all calls of key k Bcc: eve@evil.test of acme "
        "until 2026-12-01 11:00 UTC."
    )
    assert sent.message["Message-ID"] == f"<{Delivery.objects.get().pk}@tollgate>"
    assert sent.message["Bcc"] is None
    assert b"Until: 2026-12-01 11:00 UTC" in sent.content


def test_a_mail_server_that_refuses_is_recorded_without_its_words(mail: MailServer) -> None:
    services.add_recipient(kind="email", address="nobody@acme.test", actor="test")
    mail.refused = {"nobody@acme.test"}
    something_happens()

    deliveries.deliver()

    assert Delivery.objects.get().attempts[0]["error"] == "the mail server refused the recipient: [550]"


def test_without_a_mail_server_the_delivery_says_so() -> None:
    services.add_recipient(kind="email", address="ada@acme.test", actor="test")
    something_happens()

    deliveries.deliver()

    assert Delivery.objects.get().attempts[0]["error"] == "EMAIL_URL is not set"


def told_of(tenant: Tenant | None, happening: str = "threshold") -> set[str]:
    notice = something_happens(tenant, happening=happening)
    assert notice is not None
    return {one.recipient.address for one in notice.deliveries.select_related("recipient") if one.recipient}


def test_a_tenants_notices_go_to_its_recipients_and_to_those_of_the_platform(acme: Tenant) -> None:
    umbrella = create_tenant(slug="umbrella", name="Umbrella", actor="test")
    for tenant, address in [
        (acme, "ada@acme.test"),
        (umbrella, "eve@umbrella.test"),
        (None, "root@x.test"),
    ]:
        services.add_recipient(kind="email", address=address, tenant=tenant, actor="test")
    services.add_recipient(
        kind="email", address="cfo@acme.test", tenant=acme, happenings=["period_closed"], actor="test"
    )
    asleep = services.add_recipient(kind="email", address="old@acme.test", tenant=acme, actor="test")
    services.change_recipient(recipient=asleep, happenings=asleep.happenings, active=False, actor="test")

    assert told_of(acme) == {"ada@acme.test", "root@x.test"}
    assert told_of(None, "kill_switch_armed") == {"root@x.test"}
    assert told_of(acme, "period_closed") == {"cfo@acme.test"}


def test_the_same_happening_is_told_once(acme: Tenant) -> None:
    services.add_recipient(kind="email", address="ada@acme.test", tenant=acme, actor="test")

    told = [something_happens(acme), something_happens(acme), something_happens(acme, threshold=95)]

    assert [notice is not None for notice in told] == [True, False, True]
    assert Delivery.objects.count() == 2


def test_a_recipient_that_is_removed_gets_nothing_more_and_what_it_got_stays_recorded(
    http: HttpReceiver,
) -> None:
    recipient = webhook(http.url)
    something_happens()
    services.remove_recipient(recipient=recipient, actor="test")

    deliveries.deliver()

    assert http.received == []
    assert (Delivery.objects.get().state, Delivery.objects.get().to) == ("dead", "webhook 127.0.0.1")


# Where a webhook may lead


FORBIDDEN = [
    "127.0.0.1", "127.9.9.9", "0.0.0.1", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254",
    "100.64.0.1", "192.0.0.1", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255",
    "::1", "::", "fe80::1", "fc00::1", "fd00:ec2::254", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1",
    "64:ff9b::7f00:1", "64:ff9b:1::1", "2002:7f00:1::1", "2001:0:7f00:1::1", "::7f00:1", "2001:db8::1",
]  # fmt: skip


@pytest.mark.parametrize("address", FORBIDDEN)
def test_addresses_inside_are_not_called(address: str) -> None:
    assert not webhooks._is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", ["1.1.1.1", "93.184.216.34", "2606:4700:4700::1111", "::ffff:1.1.1.1"])
def test_public_addresses_are_called(address: str) -> None:
    assert webhooks._is_public(ipaddress.ip_address(address))


@given(st.ip_addresses())
def test_no_address_that_python_calls_private_is_called(address: webhooks.Address) -> None:
    if address.is_private or address.is_loopback or address.is_link_local or address.is_multicast:
        mapped = getattr(address, "ipv4_mapped", None)
        assert not webhooks._is_public(address) or (mapped is not None and mapped.is_global)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "127.1", "[::1]", "[::ffff:127.0.0.1]"]
)
def test_no_spelling_of_the_own_machine_is_called(http: HttpReceiver, host: str) -> None:
    with override_settings(WEBHOOK_NETWORKS=[]), pytest.raises(NotDelivered, match=r"not a public|looked up"):
        webhooks.post(f"http://{host}:{http.port}/", b"{}", {})

    assert http.received == []


def resolving_to(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> list[str]:
    """Let every name mean these addresses; returns the names that are asked for."""
    asked: list[str] = []

    def getaddrinfo(host: str, port: int, *_: Any, **__: Any) -> list[Any]:
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked


def test_a_name_with_one_address_inside_is_not_called(monkeypatch: pytest.MonkeyPatch) -> None:
    resolving_to(monkeypatch, "1.1.1.1", "10.0.0.1")

    with pytest.raises(NotDelivered, match=r"10\.0\.0\.1 is not a public"):
        webhooks.post("https://rebinding.test/", b"{}", {})


def test_the_connection_goes_to_the_address_that_was_looked_at(
    http: HttpReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = resolving_to(monkeypatch, "127.0.0.1")

    assert webhooks.post(f"http://receiver.test:{http.port}/", b"{}", {}) == 200

    # Once by us; the second question is that of the socket, for an address.
    assert asked.count("receiver.test") == 1
    assert http.received[0].headers["host"] == f"receiver.test:{http.port}"


def test_plain_http_is_for_networks_that_were_named(monkeypatch: pytest.MonkeyPatch) -> None:
    resolving_to(monkeypatch, "1.1.1.1")

    with pytest.raises(NotDelivered, match="https://"):
        webhooks.post("http://public.test/", b"{}", {})


def test_a_receiver_that_speaks_no_tls_is_told_nothing(http: HttpReceiver) -> None:
    with pytest.raises(NotDelivered, match=r"^TLS: "):
        webhooks.post(http.url.replace("http://", "https://"), b"{}", {})

    assert http.received == []


@pytest.mark.parametrize(
    "url",
    [
        "ftp://receiver.test/", "file:///etc/passwd", "receiver.test", "https://", "https://u:p@receiver.test/",
        "https://receiver.test:0/", "https://receiver.test:99999/", "https://receiver.test/a b",
        "https://receiver.test/\r\nX: y", "https://rec\u00e9iver.test/", "http://[::1", "gopher://x/",
    ],
)  # fmt: skip
def test_what_is_no_webhook_is_refused_where_it_is_typed_in(url: str) -> None:
    with pytest.raises(ValidationError):
        webhook(url)

    assert not Recipient.objects.exists()


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "email", "address": "nobody"},
        {"kind": "pigeon", "address": "ada@acme.test"},
        {"kind": "email", "address": "ada@acme.test", "happenings": ["weather"]},
        {"kind": "email", "address": "ada@acme.test", "happenings": ["test"]},
    ],
    ids=str,
)
def test_what_is_no_recipient_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        services.add_recipient(actor="test", **options)


# People


def test_a_webhooks_secret_can_be_changed_and_nothing_secret_is_in_the_audit(http: HttpReceiver) -> None:
    recipient = webhook(http.url)
    first = webhooks.secret_of(recipient)

    second = services.new_webhook_secret(recipient=recipient, actor="test")

    assert first != second == webhooks.secret_of(Recipient.objects.get())
    events = str(list(AuditEvent.objects.values_list("details", flat=True)))
    assert "127.0.0.1" in events
    assert "secret-part" not in events
    assert second.removeprefix("whsec_") not in events


def test_the_commands_add_a_recipient_and_try_it_out(http: HttpReceiver, acme: Tenant) -> None:
    added, tried = StringIO(), StringIO()

    call_command("add_recipient", tenant="acme", webhook=http.url, json=True, stdout=added)
    told = json.loads(added.getvalue())
    call_command("test_notification", told["recipient_id"], json=True, stdout=tried)

    assert told["secret"].startswith("whsec_")
    assert json.loads(tried.getvalue())["delivered"] is True
    assert json.loads(http.received[0].body)["happening"] == "test"


def test_the_command_says_why_a_test_did_not_arrive(http: HttpReceiver) -> None:
    recipient = webhook(http.url)
    http.statuses = [404]

    with pytest.raises(CommandError, match="answered 404"):
        call_command("test_notification", str(recipient.pk), stdout=StringIO())
    with pytest.raises(CommandError, match="no recipient"):
        call_command("test_notification", "nobody", stdout=StringIO())


def test_an_operator_adds_a_webhook_sees_its_secret_once_and_tries_it_out(http: HttpReceiver) -> None:
    browser = Client()
    browser.force_login(User.objects.create_superuser("root", "root@tollgate.test", "secret of root"))
    form = {"tenant": "", "kind": "webhook", "address": http.url, "happenings": ["threshold"]}

    added = browser.post("/admin/budgets/recipient/add/", form)

    recipient = Recipient.objects.get()
    assert webhooks.secret_of(recipient) in added.text
    assert "no-store" in added.headers["Cache-Control"]
    assert recipient.happenings == ["threshold"]
    pages = [
        browser.get("/admin/budgets/recipient/"),
        browser.get(f"/admin/budgets/recipient/{recipient.pk}/change/"),
    ]
    assert all(webhooks.secret_of(recipient) not in page.text for page in pages)
    tried = browser.post(
        "/admin/budgets/recipient/", {"action": "try_out", "_selected_action": str(recipient.pk)}, follow=True
    )
    assert "delivered" in tried.text
    wish = {"action": "new_secret", "_selected_action": str(recipient.pk)}
    asked = browser.post("/admin/budgets/recipient/", wish)
    assert "signed with the new secret alone" in asked.text
    assert Recipient.objects.get().salt == recipient.salt
    changed = browser.post("/admin/budgets/recipient/", wish | {"reason": "it leaked"})
    assert AuditEvent.objects.get(action="recipient.secret_changed").reason == "it leaked"
    assert Recipient.objects.get().salt != recipient.salt
    assert webhooks.secret_of(Recipient.objects.get()) in changed.text
    shown = browser.get("/admin/budgets/delivery/")
    assert shown.status_code == browser.get("/admin/budgets/notice/").status_code == 200
    assert "secret-part" not in shown.text
