"""The four limits of time that a call has, each shortened in a gateway of its own."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from proxy.models import Upstream
from proxy.services import save_upstream
from tests.conftest import House, eventually
from tests.gateway import Gateway
from tests.test_crashes import CHAT, ready


@pytest.fixture(scope="module")
def hasty(django_db_setup: None) -> Iterator[Gateway]:
    with Gateway(
        UPSTREAM_FIRST_BYTE_SECONDS="5", UPSTREAM_SILENCE_SECONDS="1.5", UPSTREAM_TOTAL_SECONDS="8"
    ) as running:
        yield running


@pytest.fixture
def client(house: House, hasty: Gateway) -> Iterator[httpx.Client]:
    ready(hasty.url, house.ada.secret)
    with httpx.Client(
        base_url=hasty.url, headers=dict(house.ada.http.headers), timeout=60, trust_env=False
    ) as one:
        yield one


@pytest.mark.parametrize("stream", [True, False])
def test_a_first_byte_that_does_not_come_is_a_504_that_costs_nothing(house, client, stream):
    house.ollama.fault("load-60000")

    response = client.post("/api/chat", json=CHAT | {"stream": stream})

    assert response.status_code == 504
    eventually(lambda: house.ollama.calls[0].state == "aborted")
    [entry] = house.booked()
    assert (entry.status, entry.requests, entry.input_tokens) == (504, 0, 0)


def test_a_model_may_load_longer_than_it_may_be_silent(house, client):
    house.ollama.fault("load-2000")

    assert client.post("/api/chat", json=CHAT).status_code == 200


def test_silence_in_the_middle_ends_the_stream_with_an_error(house, client):
    house.ollama.fault("silence-3-60000")

    body = client.post("/api/chat", json=CHAT).text

    assert '"done":true' not in body
    assert "took too long" in body.splitlines()[-1]
    eventually(lambda: house.ollama.calls[0].state == "aborted")
    [entry] = house.booked()
    assert (entry.outcome, entry.output_tokens, entry.exact) == ("upstream_failed", 3, False)


def test_a_stream_without_end_is_ended_when_its_time_is_over(house, client):
    house.ollama.settings.piece_delay = 0.05
    house.ollama.fault("pieces-100000")

    response = client.post("/v1/chat/completions", json=CHAT | {"stream": True, "max_tokens": 8000})

    assert "[DONE]" not in response.text
    assert '"error"' in response.text
    [entry] = house.booked()
    assert entry.outcome == "upstream_failed"
    assert 0 < entry.output_tokens < 1000


def test_an_upstream_that_is_not_there_is_a_502(house, client):

    upstream = Upstream.objects.get()
    upstream.base_url = "http://127.0.0.1:9"
    save_upstream(upstream=upstream, actor="test")

    response = client.post("/api/chat", json=CHAT)

    assert response.status_code == 502
    [entry] = house.booked()
    assert (entry.status, entry.requests) == (502, 0)
