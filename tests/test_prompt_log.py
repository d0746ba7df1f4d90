"""The prompt log: off unless a key opted in, encrypted, redacted, read by few and noted, and gone in time."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import re
import runpy
import threading
import time
from base64 import b64encode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from io import StringIO
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from django.core.exceptions import ImproperlyConfigured, ValidationError
from django.core.management import CommandError, call_command
from django.db import IntegrityError
from django.db.models import F
from django.test import Client, override_settings
from django.urls import reverse
from django.utils.timezone import now
from hypothesis import example, given
from hypothesis import strategies as st

from audit import prompts as stored
from audit.models import AuditEvent, LoggedPrompt
from audit.redaction import (
    LONGEST_MATCH,
    LONGEST_TEMPLATE,
    MARK,
    PIECE,
    _compiled,
    _without,
    check_template,
    redacted,
)
from audit.sealing import Unreadable, seal, unseal
from budgets.counters import HOLDS
from budgets.models import LedgerEntry, UsageRollup
from budgets.tasks import forget_prompts
from keys import prompts
from keys.models import ApiKey, PromptRules
from keys.services import change_key, issue_key, set_anonymous_access
from proxy import transcripts
from proxy.prompt_log import WAITING, PromptLog
from tenants.models import Member, User
from tenants.redis import redis_now
from tenants.services import add_member, create_tenant, create_user
from tests.conftest import Caller, House, eventually
from tests.fault_proxy import line_to
from tests.gateway import Gateway, database_url
from tests.test_crashes import ready
from tests.test_docs import ROOT
from tests.test_hostile import CANARY, DOORS, MESSAGES, everything_in_postgres, everything_in_redis

OLD, NEW = (bytes([number]) * 32 for number in (1, 2))

# Hundreds of calls through several gateways.
pytestmark = pytest.mark.slow

TOKEN = "a token of the operator's own"


def in_settings(*keys: bytes) -> str:
    return ",".join(b64encode(key).decode() for key in keys)


@pytest.fixture(autouse=True)
def key_at_hand() -> Iterator[None]:
    """This process can seal and open what the gateway of these tests seals."""
    with override_settings(PROMPT_LOG_KEYS=[OLD]):
        yield


@pytest.fixture(scope="module")
def second(gateway: Gateway) -> Iterator[Gateway]:
    with Gateway(PROMPT_LOG_KEYS=in_settings(OLD), PROMPT_LOG_MAX_CHARACTERS="2000") as running:
        yield running


@pytest.fixture
def keeping(house: House, second: Gateway) -> Gateway:
    """A gateway that can keep prompts; the one of the house cannot."""
    ready(second.url, house.ada.secret)
    return second


def post(gateway: Gateway, caller: Caller, path: str, body: dict[str, Any]) -> httpx.Response:
    headers = {"Authorization": f"Bearer {caller.secret}"}
    return httpx.post(gateway.url + path, json=body, headers=headers, trust_env=False, timeout=30)


def chat(gateway: Gateway, caller: Caller, content: str = "How is the weather?", **fields: Any) -> UUID:
    """One native chat; the id of its request."""
    body = {"model": "tiny:1b", "messages": [{"role": "user", "content": content}], **fields}
    response = post(gateway, caller, "/api/chat", body)
    assert response.status_code == 200, response.text
    return UUID(response.headers["x-request-id"])


def opted_in(house: House, days: int = 7, **options: Any) -> Caller:
    caller = house.caller(**options)
    change_key(key=caller.key, actor="test", prompt_log_days=days)
    return caller


def kept(request_id: UUID) -> LoggedPrompt:
    row: LoggedPrompt = eventually(lambda: LoggedPrompt.objects.filter(pk=request_id).first())
    return row


def texts(request_id: UUID) -> tuple[str, str]:
    return stored.opened(kept(request_id))


def marked(fields: dict[str, Any], mark: str) -> dict[str, Any]:
    """A request of ``DOORS`` with ``mark`` as its prompt."""
    body: dict[str, Any] = json.loads(json.dumps(fields).replace("Once", mark))
    return body if "messages" not in body else body | {"messages": [{"role": "user", "content": mark}]}


# What is kept, and what is not


def test_of_a_key_that_did_not_opt_in_nothing_is_kept_anywhere(house: House, keeping: Gateway) -> None:
    watching = opted_in(house)
    change_key(key=watching.key, actor="test", prompt_log_days=None)
    for caller, (path, fields) in itertools.product((house.ada, watching), DOORS.items()):
        assert post(keeping, caller, path, marked(fields, CANARY)).status_code == 200, path
    # What was asked later is there, so what was asked before would be.
    change_key(key=watching.key, actor="test", prompt_log_days=1)
    last = chat(keeping, watching)
    kept(last)
    house.booked(2 * len(DOORS) + 1)

    assert [row.pk for row in LoggedPrompt.objects.all()] == [last]
    assert len(house.ollama.find(CANARY)) >= 2 * len(DOORS)
    for text in (*everything_in_redis(), *everything_in_postgres(), keeping.log()):
        assert CANARY not in text


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", DOORS)
def test_of_a_key_that_opted_in_prompt_and_answer_are_kept_and_encrypted(
    house: House, keeping: Gateway, path: str, stream: bool
) -> None:
    caller = opted_in(house)
    body = marked(DOORS[path], CANARY) | ({} if "embed" in path else {"stream": stream})

    response = post(keeping, caller, path, body)

    assert response.status_code == 200
    request_id = UUID(response.headers["x-request-id"])
    prompt, answer = texts(request_id)
    row = kept(request_id)
    assert CANARY in json.dumps(json.loads(prompt))
    if "embed" in path:
        assert answer == ""
    else:
        assert answer == house.ollama.calls[-1].text
        assert answer
    assert (row.tenant_id, row.key_id, row.member_id) == (house.acme.pk, caller.key.pk, None)
    assert (row.tenant, row.key, row.cut) == ("acme", caller.key.label, False)
    assert row.expires_at - row.at == timedelta(days=7)
    for text in (*everything_in_redis(), *everything_in_postgres(), keeping.log()):
        assert CANARY not in text
        assert CANARY.encode().hex() not in text


def test_opting_in_and_out_takes_force_with_the_next_call(house: House, keeping: Gateway) -> None:
    caller = house.caller()
    wanted = []
    for days in (3, None, 5, None):
        change_key(key=caller.key, actor="ada", prompt_log_days=days)
        request_id = chat(keeping, caller)
        wanted += [request_id] if days else []
    kept(wanted[-1])

    assert set(LoggedPrompt.objects.values_list("pk", flat=True)) == set(wanted)
    changes = AuditEvent.objects.filter(action="key.changed", subject=str(caller.key.pk)).order_by("id")
    assert [(event.actor, event.details["before"], event.details["after"]) for event in changes] == [
        ("ada", {"prompt_log_days": before}, {"prompt_log_days": after})
        for before, after in ((None, 3), (3, None), (None, 5), (5, None))
    ]


@pytest.mark.parametrize("fault", ["reset-3", "error-3", "cut-3"])
def test_of_a_stream_that_broke_what_was_delivered_is_kept(
    house: House, keeping: Gateway, fault: str
) -> None:
    caller = opted_in(house)
    house.ollama.fault(fault)
    headers = {"Authorization": f"Bearer {caller.secret}"}
    body = {"model": "tiny:1b", "messages": MESSAGES}
    response = httpx.post(f"{keeping.url}/api/chat", json=body, headers=headers, trust_env=False, timeout=30)
    lines = [json.loads(line) for line in response.text.splitlines()]
    delivered = "".join(line["message"]["content"] for line in lines if "message" in line)

    prompt, answer = texts(UUID(response.headers["x-request-id"]))

    assert "How is the weather?" in prompt
    assert answer == delivered != ""


def test_a_refused_call_leaves_nothing(house: House, keeping: Gateway) -> None:
    caller = opted_in(house)
    body = {"model": "nobody", "messages": [{"role": "user", "content": CANARY}]}

    assert post(keeping, caller, "/api/chat", body).status_code == 403
    last = chat(keeping, caller)
    kept(last)

    assert [row.pk for row in LoggedPrompt.objects.all()] == [last]


def test_what_is_too_long_is_cut_and_marked_and_no_half_of_a_secret_stays(
    house: House, keeping: Gateway
) -> None:
    caller = opted_in(house)
    secret = caller.secret
    # The bound of this gateway, 2000 characters, lies in the middle of the secret.
    request_id = chat(keeping, caller, "x " * 985 + secret + " y" * 5000)
    house.ollama.fault("pieces-500")
    long_answer = chat(keeping, caller, images=None, options={"num_predict": 2000})

    prompt, _ = texts(request_id)
    row = kept(request_id)
    _, answer = texts(long_answer)

    assert row.cut
    assert len(prompt) < 2200
    assert transcripts.CUT in prompt
    assert secret[:10] not in prompt
    assert kept(long_answer).cut == (len(house.ollama.calls[-1].text) > 2000)
    assert len(answer) <= 2000 + len(transcripts.CUT)


def test_pictures_are_told_by_their_size_and_not_kept(house: House, keeping: Gateway) -> None:
    caller = opted_in(house)
    picture = b64encode(os.urandom(900)).decode()
    message = {"role": "user", "content": "What is this?", "images": [picture]}

    prompt, _ = texts(chat(keeping, caller, messages=[message]))

    shown = f"[{len(picture)} characters of data]"
    assert json.loads(prompt)["messages"] == [message | {"images": [shown]}]


@given(
    st.recursive(
        st.text() | st.integers() | st.none(), lambda one: st.lists(one) | st.dictionaries(st.text(), one)
    )
)
def test_whatever_was_said_is_bounded(said: Any) -> None:
    shortening = transcripts._Shortening((), 100)

    text = json.dumps(shortening.of(said), ensure_ascii=False)

    assert len(text) <= 100 * 12 + 200
    if not shortening.cut:
        assert transcripts.CUT not in text or transcripts.CUT in json.dumps(said)


# Never in the way of a call


@pytest.mark.parametrize("fault", ["refuse", "freeze"])
def test_without_postgres_calls_go_on_and_what_is_not_kept_is_counted(house: House, fault: str) -> None:
    caller = opted_in(house)
    with (
        line_to(database_url()) as (line, url),
        Gateway(DATABASE_URL=url, PROMPT_LOG_KEYS=in_settings(OLD), METRICS_TOKEN=TOKEN) as gateway,
    ):
        eventually(
            lambda: post(gateway, caller, "/api/chat", {"model": "tiny:1b", "messages": MESSAGES}).is_success
        )
        eventually(LoggedPrompt.objects.exists)
        before = set(LoggedPrompt.objects.values_list("pk", flat=True))
        getattr(line, fault)()

        def seconds() -> float:
            began = time.monotonic()
            chat(gateway, caller, CANARY)
            return time.monotonic() - began

        # The quickest: the machine of the tests has other work.
        quickest = min(seconds() for _ in range(3))

        if fault == "refuse":
            # In one batch or in several.
            eventually(lambda: sum(map(int, re.findall(r"(\d+) calls are not in", gateway.log()))) == 3)
            eventually(lambda: dropped(gateway) == 3)
        line.take_again()
        line.thaw()

        later: list[UUID] = []

        def kept_again() -> bool:
            """A process may take a moment to notice that PostgreSQL is back."""
            later.append(chat(gateway, caller))
            return LoggedPrompt.objects.filter(pk__in=later).exists()

        eventually(kept_again)

    assert quickest < 1
    assert set(LoggedPrompt.objects.values_list("pk", flat=True)) >= before
    for text in (*everything_in_redis(), gateway_log(gateway)):
        assert CANARY not in text


def gateway_log(gateway: Gateway) -> str:
    return gateway.log() if not gateway._log.closed else ""


def dropped(gateway: Gateway) -> float:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    text = httpx.get(f"{gateway.url}/metrics", headers=headers, trust_env=False, timeout=30).text
    lines = [line for line in text.splitlines() if line.startswith("tollgate_dropped_prompts_total ")]
    return float(lines[0].split()[1]) if lines else 0.0


class Nothing:
    """A transcript of a call that said nothing, of a size."""

    def __init__(self, size: int) -> None:
        self.size = size


@pytest.mark.parametrize(("count", "size"), [(WAITING + 7, 10), (64 + 7, 2**20)])
def test_more_than_may_wait_is_dropped_and_counted(
    monkeypatch: pytest.MonkeyPatch, count: int, size: int
) -> None:
    written: list[Any] = []

    def write(batch: list[Any]) -> tuple[int, str]:
        written.extend(batch)
        return 0, ""

    monkeypatch.setattr("proxy.prompt_log._write", write)

    async def offer_many() -> PromptLog:
        log = PromptLog()
        for _ in range(count):
            log.offer(Nothing(size))  # type: ignore[arg-type]
        await log.flush()
        # There is room again for as much.
        log.offer(Nothing(size))  # type: ignore[arg-type]
        await log.flush()
        return log

    log = asyncio.run(offer_many())

    assert log.dropped == 7
    assert len(written) == count - 7 + 1


def test_a_process_that_ends_waits_for_what_is_being_written(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, may_end, written = threading.Event(), threading.Event(), []

    def write(batch: list[Any]) -> tuple[int, str]:
        begun.set()
        may_end.wait(30)
        written.extend(batch)
        return 0, ""

    monkeypatch.setattr("proxy.prompt_log._write", write)

    async def end_while_writing() -> None:
        log = PromptLog()
        log.offer(Nothing(1))  # type: ignore[arg-type]
        await asyncio.to_thread(begun.wait, 30)
        ending = asyncio.create_task(log.flush())
        await asyncio.sleep(0)
        assert not ending.done()
        may_end.set()
        await ending
        assert len(written) == 1

    asyncio.run(end_while_writing())


def test_what_waits_when_a_process_ends_is_written(house: House) -> None:
    caller = opted_in(house)
    with Gateway(PROMPT_LOG_KEYS=in_settings(OLD)) as gateway:
        eventually(
            lambda: post(gateway, caller, "/api/chat", {"model": "tiny:1b", "messages": MESSAGES}).is_success
        )
        last = chat(gateway, caller, "the last words")

    assert "the last words" in texts(last)[0]


# Opting in


@pytest.mark.parametrize("given", ["short", "c2hvcnQ=", "-" * 43 + "="])
def test_keys_that_are_none_are_told_in_a_sentence(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMPT_LOG_KEYS", given)

    with pytest.raises(ImproperlyConfigured, match="is 32 random bytes in base64"):
        runpy.run_path(str(ROOT / "config" / "settings.py"))


def test_without_keys_to_encrypt_with_nobody_can_opt_in_and_nothing_is_kept(
    house: House, keeping: Gateway
) -> None:
    with override_settings(PROMPT_LOG_KEYS=[]):
        for days in (1, 30):
            with pytest.raises(ValidationError, match="PROMPT_LOG_KEYS"):
                change_key(key=house.ada.key, actor="test", prompt_log_days=days)
            with pytest.raises(ValidationError, match="PROMPT_LOG_KEYS"):
                issue_key(tenant=house.acme, label="new", actor="test", prompt_log_days=days)
        # Whoever opted in before may still do anything else.
    caller = opted_in(house)
    with override_settings(PROMPT_LOG_KEYS=[]):
        change_key(key=caller.key, actor="test", label="another name")
    # The house's own gateway has no keys.
    chat(house.gateway, caller)
    last = chat(keeping, caller)
    kept(last)

    assert [row.pk for row in LoggedPrompt.objects.all()] == [last]


@pytest.mark.parametrize("days", [0, -1, 31])
def test_a_lifetime_is_between_a_day_and_the_most_that_is_set(house: House, days: int) -> None:
    with pytest.raises(ValidationError):
        change_key(key=house.ada.key, actor="test", prompt_log_days=days)

    house.ada.key.refresh_from_db()
    assert house.ada.key.prompt_log_days is None


def test_visitors_can_never_be_kept(house: House) -> None:
    access = set_anonymous_access(tenant=house.acme, enabled=True, models=["tiny:1b"], actor="test")

    with pytest.raises(ValidationError, match="visitors"):
        change_key(key=access.key, actor="test", prompt_log_days=3)
    with pytest.raises(IntegrityError):
        ApiKey.objects.filter(pk=access.key.pk).update(prompt_log_days=3)


# Its end


def test_what_is_past_its_lifetime_cannot_be_read_and_is_deleted(house: House, keeping: Gateway) -> None:
    caller = opted_in(house)
    prompts.set_prompt_rules(tenant=house.acme, readers=["operator"], actor="test")
    over, alive = chat(keeping, caller), chat(keeping, caller)
    kept(over), kept(alive)
    LoggedPrompt.objects.filter(pk=over).update(at=now() - timedelta(days=8), expires_at=now())

    with pytest.raises(LoggedPrompt.DoesNotExist):
        prompts.read_prompt(request_id=over, roles={"operator"}, actor="olga", reason="a complaint")
    forget_prompts()

    assert [row.pk for row in LoggedPrompt.objects.all()] == [alive]
    forget_prompts()
    assert LoggedPrompt.objects.count() == 1


def test_erasing_deletes_what_one_person_said_and_nothing_of_the_books(
    house: House, keeping: Gateway
) -> None:
    ada, eve = (member(house, name) for name in ("ada", "eve"))
    elsewhere = create_tenant(slug="other", name="Other", actor="test", allow_all_models=True)
    abroad = add_member(tenant=elsewhere, user=ada.user, actor="test")
    mine = [opted_in(house, member=ada), opted_in(house, member=ada)]
    others = [opted_in(house, member=eve), opted_in(house), opted_in(house, tenant=elsewhere, member=abroad)]
    requests = [chat(keeping, caller) for caller in (*mine, *others)]
    for request_id in requests:
        kept(request_id)
    house.booked(len(requests))
    books = (
        list(LedgerEntry.objects.order_by("id").values()),
        list(UsageRollup.objects.order_by("id").values()),
    )

    said = StringIO()
    call_command("erase_prompts", "--tenant=acme", "--member=ADA@example.org", "--reason=asked", stdout=said)

    assert said.getvalue() == "Erased what 2 calls of ada at acme said and were answered.\n"
    assert set(LoggedPrompt.objects.values_list("pk", flat=True)) == set(requests[2:])
    assert books == (
        list(LedgerEntry.objects.order_by("id").values()),
        list(UsageRollup.objects.order_by("id").values()),
    )
    event = AuditEvent.objects.get(action="prompt.erased")
    assert (event.subject, event.tenant_id, event.reason) == (str(ada.pk), house.acme.pk, "asked")
    assert event.details == {"calls": 2}
    call_command(
        "erase_prompts", "--tenant=acme", "--member=ada@example.org", "--json", stdout=(again := StringIO())
    )
    assert json.loads(again.getvalue())["calls"] == 0


def test_what_was_asked_before_an_erasure_and_is_still_on_its_way_is_not_kept(
    house: House, keeping: Gateway
) -> None:
    ada = member(house, "ada")
    caller = opted_in(house, member=ada)
    house.ollama.fault("load-1500")
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(chat, keeping, caller, CANARY)
        eventually(lambda: redis_now().zcard(HOLDS) == 1)
        prompts.erase_prompts(member=ada, actor="test")
        before = running.result()
    house.ollama.script.clear()

    after = chat(keeping, caller)
    kept(after)

    assert [row.pk for row in LoggedPrompt.objects.all()] == [after]
    assert {entry.request_id for entry in house.booked(2)} == {before, after}


def member(house: House, name: str, role: str = Member.Role.MEMBER) -> Member:
    user = create_user(username=name, email=f"{name}@example.org", actor="test")
    return add_member(tenant=house.acme, user=user, role=role, actor="test")


# Reading


def a_row(tenant_id: UUID, prompt: str = CANARY, answer: str = "an answer") -> UUID:
    """Something kept, without a call."""
    request_id = uuid4()
    said = stored.Said(
        request_id=request_id, tenant_id=tenant_id, tenant="acme", key_id=uuid4(), key="a key",
        member_id=None, asked_at=now(), at=now(), days=3, prompt=prompt, answer=answer, cut=False,
    )  # fmt: skip
    stored.keep([said, said])
    return request_id


def may_read(request_id: UUID, who: set[str] | User) -> bool:
    try:
        reading = prompts.read_prompt(request_id=request_id, roles=who, actor="somebody", reason="a test")
    except LoggedPrompt.DoesNotExist:
        return False
    return (reading.prompt, reading.answer) == (CANARY, "an answer")


@pytest.mark.django_db
def test_nobody_reads_by_default_and_then_the_roles_that_the_tenant_chose() -> None:
    acme, other = (create_tenant(slug=slug, name=slug, actor="test") for slug in ("acme", "other"))
    people: dict[str, User] = {}
    for role in Member.Role.values:
        user = create_user(username=role, email=f"{role}@example.org", actor="test")
        add_member(tenant=acme, user=user, role=role, actor="test")
        people[role] = user
        stranger = create_user(username=f"{role}-elsewhere", email=f"{role}@example.net", actor="test")
        add_member(tenant=other, user=stranger, role=role, actor="test")
        people[f"{role}-elsewhere"] = stranger
    people["operator"] = create_user(
        username="olga", email="o@example.org", is_staff=True, is_superuser=True, actor="test"
    )
    people["staff"] = create_user(username="staff", email="s@example.org", is_staff=True, actor="test")
    request_id = a_row(acme.pk)

    for readers in ([], *([role] for role in Member.Role.values), ["operator"], ["owner", "finance"]):
        prompts.set_prompt_rules(tenant=acme, readers=readers, actor="test")
        prompts.set_prompt_rules(tenant=other, readers=[*Member.Role.values], actor="test")
        assert {name for name, user in people.items() if may_read(request_id, user)} == set(readers)
    people["owner"].is_active = False
    assert not may_read(request_id, people["owner"])
    assert not may_read(uuid4(), people["finance"])
    PromptRules.objects.all().delete()
    assert not any(may_read(request_id, user) for user in people.values())


@pytest.mark.django_db
def test_reading_is_noted_with_its_reason_and_does_not_happen_without() -> None:
    acme = create_tenant(slug="acme", name="ACME", actor="test")
    prompts.set_prompt_rules(tenant=acme, readers=["operator"], actor="olga")
    request_id = a_row(acme.pk)

    with pytest.raises(ValidationError, match="why"):
        prompts.read_prompt(request_id=request_id, roles={"operator"}, actor="olga", reason="  ")
    assert not AuditEvent.objects.filter(action="prompt.read").exists()
    prompts.read_prompt(request_id=request_id, roles={"operator"}, actor="olga", reason="a complaint ")

    event = AuditEvent.objects.get(action="prompt.read")
    assert (event.actor, event.subject, event.tenant_id, event.reason) == (
        "olga", str(request_id), acme.pk, "a complaint",
    )  # fmt: skip
    assert CANARY not in json.dumps(event.details)
    rules = AuditEvent.objects.get(action="prompt_rules.set")
    assert (rules.actor, rules.details["before"], rules.details["after"]) == (
        "olga", {"readers": []}, {"readers": ["operator"]},
    )  # fmt: skip


@pytest.mark.django_db
def test_what_cannot_be_read_is_the_same_for_the_command_whatever_the_reason() -> None:
    acme = create_tenant(slug="acme", name="ACME", actor="test")
    request_id = a_row(acme.pk)

    said = set()
    for name in (str(request_id), str(uuid4()), "no id"):
        with pytest.raises(CommandError) as refused:
            call_command("read_prompt", name, "--reason=a test")
        said.add(str(refused.value).replace(name, "ID"))
    assert said == {"There is no prompt of 'ID' to be read."}
    call_command("set_prompt_log", "--tenant=acme", "--readers=operator,owner", stdout=StringIO())
    call_command("read_prompt", str(request_id), "--reason=a test", "--json", stdout=(shown := StringIO()))
    call_command("read_prompt", str(request_id), "--reason=a test", stdout=(plain := StringIO()))

    told = json.loads(shown.getvalue())
    assert (told["prompt"], told["answer"], told["request_id"]) == (CANARY, "an answer", str(request_id))
    assert plain.getvalue() == f"{CANARY}\n\nan answer\n"
    with override_settings(PROMPT_LOG_KEYS=[NEW]), pytest.raises(CommandError, match="PROMPT_LOG_KEYS"):
        call_command("read_prompt", str(request_id), "--reason=a test")
    assert AuditEvent.objects.filter(action="prompt.read").count() == 2


@pytest.mark.django_db
def test_a_terminal_obeys_nothing_of_what_was_kept() -> None:
    acme = create_tenant(slug="acme", name="ACME", actor="test")
    request_id = a_row(acme.pk, prompt="one\n\x1b]0;owned\a", answer="\x1b[2Jall is well")
    prompts.set_prompt_rules(tenant=acme, actor="test", readers=["operator"])

    call_command("read_prompt", str(request_id), "--reason=a test", stdout=(shown := StringIO()))

    assert shown.getvalue() == "one\n\\x1b]0;owned\\x07\n\n\\x1b[2Jall is well\n"


@pytest.mark.django_db
def test_the_admin_lists_without_content_and_shows_it_for_a_reason_only() -> None:
    acme, other = (create_tenant(slug=slug, name=slug, actor="test") for slug in ("acme", "other"))
    prompts.set_prompt_rules(tenant=acme, readers=["operator"], actor="test")
    mine, theirs = a_row(acme.pk, prompt=f"<b>{CANARY}</b>"), a_row(other.pk)
    olga = Client()
    olga.force_login(User.objects.create_superuser("olga", "olga@example.org", "a long enough password"))
    address = reverse("admin:audit_loggedprompt_read", args=[mine])

    for page in (
        reverse("admin:audit_loggedprompt_changelist"),
        reverse("admin:audit_loggedprompt_change", args=[mine]),
        address,
    ):
        answer = olga.get(page)
        assert answer.status_code == 200
        assert CANARY not in answer.content.decode()
    assert "Say why." in olga.post(address, {"reason": " "}).content.decode()
    assert not AuditEvent.objects.filter(action="prompt.read").exists()
    read = olga.post(address, {"reason": "a complaint"})

    assert f"&lt;b&gt;{CANARY}&lt;/b&gt;" in read.content.decode()
    assert "no-store" in read["Cache-Control"]
    assert AuditEvent.objects.get(action="prompt.read").actor == "olga"
    unknown = olga.post(reverse("admin:audit_loggedprompt_read", args=[uuid4()]), {"reason": "curiosity"})
    forbidden = olga.post(reverse("admin:audit_loggedprompt_read", args=[theirs]), {"reason": "curiosity"})
    assert forbidden.status_code == unknown.status_code == 404
    assert without_token(forbidden) == without_token(unknown)
    visitor = Client()
    visitor.force_login(create_user(username="eve", email="eve@example.org", actor="test"))
    assert visitor.post(address, {"reason": "curiosity"}).status_code == 302


def without_token(page: Any) -> str:
    """A page without the one thing that is new with each."""
    return re.sub(r'(name="csrfmiddlewaretoken" value=)"[^"]+"', r"\1", page.content.decode())


@pytest.mark.django_db
def test_the_admin_refuses_a_lifetime_that_is_too_long_in_the_form() -> None:
    acme = create_tenant(slug="acme", name="ACME", actor="test")
    key, _ = issue_key(tenant=acme, label="nightly", actor="test")
    olga = Client()
    olga.force_login(User.objects.create_superuser("olga", "olga@example.org", "a long enough password"))
    address = reverse("admin:keys_apikey_change", args=[key.pk])
    form = {
        "label": "nightly", "may_call": "silent", "listed": "", "expires_at_0": "", "expires_at_1": "",
        "secrets-TOTAL_FORMS": "0", "secrets-INITIAL_FORMS": "0",
    }  # fmt: skip

    assert "1 to 30 days" in olga.post(address, form | {"prompt_log_days": "31"}).content.decode()
    assert olga.post(address, form | {"prompt_log_days": "30"}).status_code == 302
    key.refresh_from_db()
    assert key.prompt_log_days == 30


@pytest.mark.django_db
def test_the_command_sets_lifetime_and_rules(capsys: pytest.CaptureFixture[str]) -> None:
    acme = create_tenant(slug="acme", name="ACME", actor="test")
    key, _ = issue_key(tenant=acme, label="nightly", actor="test")
    for wrong in (
        ["--key", str(key.pk)],
        ["--key", str(key.pk), "--days=soon"],
        ["--key", str(key.pk), "--days=400"],
        ["--key", str(key.pk), "--days=1", "--readers=owner"],
        ["--tenant=acme"],
        ["--tenant=acme", "--days=1"],
        ["--tenant=acme", "--readers=everybody"],
        ["--tenant=acme", "--redact=a+"],
    ):
        with pytest.raises(CommandError):
            call_command("set_prompt_log", *wrong)

    call_command("set_prompt_log", "--key", str(key.pk), "--days=9", "--json")
    call_command("set_prompt_log", "--tenant=acme", "--redact=EMP-####", "--redact=PIN ##+", "--json")
    call_command("set_prompt_log", "--tenant=acme", "--readers=owner", "--json")

    days, redactions, readers = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert days["days"] == 9
    assert redactions["redactions"] == readers["redactions"] == ["EMP-####", "PIN ##+"]
    assert readers["readers"] == ["owner"]
    call_command("set_prompt_log", "--key", str(key.pk), "--days=off")
    call_command("set_prompt_log", "--tenant=acme", "--redact=none", "--readers=nobody")
    key.refresh_from_db()
    rules = PromptRules.objects.get()
    assert (key.prompt_log_days, rules.readers, rules.redactions) == (None, [], [])


# Encrypting


def test_the_first_key_encrypts_and_every_key_decrypts() -> None:
    with override_settings(PROMPT_LOG_KEYS=[OLD]):
        before = seal(CANARY, "here")
    with override_settings(PROMPT_LOG_KEYS=[NEW, OLD]):
        after = seal(CANARY, "here")
        assert unseal(before, "here") == unseal(after, "here") == CANARY
    with override_settings(PROMPT_LOG_KEYS=[NEW]):
        assert unseal(after, "here") == CANARY
        with pytest.raises(Unreadable):
            unseal(before, "here")


@given(st.text(), st.integers(min_value=0))
def test_what_was_sealed_opens_in_its_place_only_and_unchanged(text: str, position: int) -> None:
    with override_settings(PROMPT_LOG_KEYS=[OLD]):
        sealed = seal(text, "here")
        changed = bytearray(sealed)
        changed[position % len(sealed)] ^= 1

        assert unseal(sealed, "here") == text
        assert seal(text, "here") != sealed
        for spoilt, place in ((sealed, "there"), (bytes(changed), "here"), (b"", "here")):
            with pytest.raises(Unreadable):
                unseal(spoilt, place)


@pytest.mark.django_db
def test_what_is_moved_to_another_tenant_does_not_open_there() -> None:
    acme, other = (create_tenant(slug=slug, name=slug, actor="test") for slug in ("acme", "other"))
    prompts.set_prompt_rules(tenant=other, readers=["operator"], actor="test")
    request_id = a_row(acme.pk)
    LoggedPrompt.objects.filter(pk=request_id).update(tenant_id=other.pk)

    with pytest.raises(Unreadable):
        prompts.read_prompt(request_id=request_id, roles={"operator"}, actor="eve", reason="a test")

    LoggedPrompt.objects.filter(pk=request_id).update(prompt=F("answer"), tenant_id=acme.pk)
    with pytest.raises(Unreadable):
        stored.opened(LoggedPrompt.objects.get())


# Redaction


OURS = "tg_oDVb35ckz14Q" + "a1B2" * 11 + "zz"
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.SflKxwRJSMeKKF2QT4fw"
PEM = "-----BEGIN RSA PRIVATE KEY-----\nMIIEow\nIBAAKCAQ\n-----END RSA PRIVATE KEY-----"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("nothing to see", "nothing to see", id="nothing"),
        pytest.param(f"key: {OURS}.", f"key: {MARK}.", id="ours"),
        pytest.param(f"key: tgm_{OURS[3:]}.", f"key: {MARK}.", id="ours, to manage with"),
        pytest.param(f"x{OURS[:40]}", f"x{MARK}", id="ours, cut off and behind a letter"),
        pytest.param(f"Authorization: Bearer {OURS}", f"Authorization: Bearer {MARK}", id="ours as bearer"),
        pytest.param("bearer abcdefghij0123456789==", f"bearer {MARK}", id="a bearer of others"),
        pytest.param("the bearer of bad news", "the bearer of bad news", id="no bearer"),
        pytest.param('"authorization": "Basic dXNlcjpwYXNz"', f'"authorization": "Basic {MARK}"', id="basic"),
        pytest.param(f"a {JWT} b", f"a {MARK} b", id="JWT"),
        pytest.param(f"a\n{PEM}\nb", f"a\n{MARK}\nb", id="private key"),
        pytest.param(PEM[:50], MARK, id="private key without an end"),
        pytest.param("sk-proj-abcdef0123456789abcd", MARK, id="OpenAI"),
        pytest.param("task-management-for-beginners", "task-management-for-beginners", id="no key"),
        pytest.param("sk_live_abcdef0123456789", MARK, id="Stripe"),
        pytest.param("AKIAIOSFODNN7EXAMPLE", MARK, id="AWS"),
        pytest.param("ghp_" + "a1" * 18, MARK, id="GitHub"),
        pytest.param("github_pat_" + "a1" * 20, MARK, id="GitHub, newer"),
        pytest.param("glpat-" + "a1" * 10, MARK, id="GitLab"),
        pytest.param("xoxb-123456789012-abcdef", MARK, id="Slack"),
        pytest.param("AIza" + "a1" * 18, MARK, id="Google"),
        pytest.param("hf_" + "a1" * 17, MARK, id="Hugging Face"),
        pytest.param("postgres://ada:hunter2@db/x", f"postgres://{MARK}@db/x", id="address with a password"),
        pytest.param("https://example.org:443/a", "https://example.org:443/a", id="address without"),
        pytest.param('{"password": "hunter22"}', f'{{"password": "{MARK}"}}', id="password in JSON"),
        pytest.param("API_KEY=abc123xyz", f"API_KEY={MARK}", id="key in a setting"),
        pytest.param("forgot my password again", "forgot my password again", id="no password"),
    ],
)
def test_secrets_are_known_by_their_looks(text: str, expected: str) -> None:
    assert redacted(text) == expected


@pytest.mark.parametrize(
    ("template", "text", "expected"),
    [
        pytest.param("EMP-####", "I am emp-1234.", f"I am {MARK}.", id="digits, in any case"),
        pytest.param("EMP-####", "EMP-12", "EMP-12", id="too short"),
        pytest.param("###-##-####", "078-05-1120", MARK, id="digits alone"),
        pytest.param("P@@?#", "PäöZ7 P1234", f"{MARK} P1234", id="letters of any language"),
        pytest.param("case #+", "case 1234567", MARK, id="as many as there are"),
        pytest.param("case #+", "case " + "1" * 40, MARK + "1" * 8, id="up to 32"),
        pytest.param(r"a\#\+\\b", r"a#+\b", MARK, id="characters that mean themselves"),
        pytest.param("(.*)[x]", "(.*)[x] abcx", f"{MARK} abcx", id="no regular expression"),
    ],
)
def test_templates_take_out_what_they_say(template: str, text: str, expected: str) -> None:
    check_template(template)

    assert redacted(text, [template]) == expected


@pytest.mark.parametrize(
    "template",
    ["", "##", "a+bc", "+abc", "#++ab", "abc\\", "ab\ncd", "#+#+#+#+#+", "x" * (LONGEST_TEMPLATE + 1)],
)
def test_what_is_no_template_is_refused(template: str) -> None:
    with pytest.raises(ValueError, match=r"(?s).+"):
        check_template(template)


TEMPLATES = st.text("ab#@?+- \\", min_size=3, max_size=12)


@given(TEMPLATES, st.text("ab12 -", max_size=60), st.integers(min_value=0, max_value=60))
@example("ab##", "ab12", 2)
def test_a_text_in_pieces_is_searched_as_the_whole_would_be(template: str, text: str, before: int) -> None:
    try:
        check_template(template)
    except ValueError:
        return
    # Across the places where a piece ends.
    long = f"{'.' * (PIECE - before)}{text}{'.' * (PIECE - before)}{text}"

    assert _without(_compiled(template), long) == _compiled(template).sub(MARK, long)
    assert all(len(found.group()) <= LONGEST_MATCH for found in _compiled(template).finditer(long))


@pytest.mark.parametrize(
    "text",
    [
        "a" * 70_000, "1" * 70_000, "eyJ" * 23_000, "eyJaaaaaaaa." * 6000, "bearer " * 10_000, "sk-" * 23_000,
        "-----BEGIN PRIVATE KEY-----" * 2600, "-----END " * 7000, "://a:" * 14_000, "password=" * 7000,
        "authorization: " * 4600, "tg_" * 23_000, " " * 70_000, "data:" * 14_000, "a1" * 35_000,
    ],
    ids=lambda text: text[:12],
)  # fmt: skip
def test_no_text_takes_long_whatever_the_templates(text: str) -> None:
    hostile = ["aaaaaaaaaa?+?+?+#", "@+@+@+#", "#+#+#+@", "?+?+?+ ", "a?+a?+a?+!", "1?+1?+1?+!"]
    for template in hostile:
        check_template(template)

    def seconds() -> float:
        began = time.process_time()
        redacted(text, hostile)
        return time.process_time() - began

    # Twice as long takes about twice the time; what grows with the square would take minutes.
    assert min(seconds() for _ in range(2)) < 2


def test_a_text_that_is_not_of_a_call_that_opted_in_is_never_looked_at(house: House) -> None:
    class NeverTouched:
        def __getattribute__(self, name: str) -> Any:
            raise AssertionError(name)

    class Reserved:
        caller = type("Caller", (), {"prompt_log_days": None})

    assert transcripts.transcript_of(NeverTouched(), Reserved()) is None  # type: ignore[arg-type]
