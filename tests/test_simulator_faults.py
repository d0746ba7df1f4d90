"""The simulated Ollama breaks in the way it is told, byte by byte, and writes down the truth."""

import gzip
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from proxy.simulator import SimulatorThread, faults
from proxy.simulator.generation import WITHHELD_PIECES

HELLO = [{"role": "user", "content": "Tell me about herons"}]
STREAMS = [
    pytest.param("/api/chat", {"messages": HELLO}, id="chat"),
    pytest.param("/api/generate", {"prompt": "Tell me"}, id="generate"),
    pytest.param("/v1/chat/completions", {"messages": HELLO, "stream": True}, id="v1 chat"),
    pytest.param("/v1/completions", {"prompt": "Tell me", "stream": True}, id="v1 completions"),
    pytest.param("/v1/responses", {"input": "Tell me", "stream": True}, id="responses"),
    pytest.param("/v1/messages", {"messages": HELLO, "max_tokens": 99, "stream": True}, id="messages"),
]
END_MARKS = (b'"done":true', b"[DONE]", b"response.completed", b"message_stop")


@pytest.fixture
def ollama():
    with SimulatorThread() as simulator:
        yield simulator


@pytest.fixture
def http(ollama):
    with httpx.Client(base_url=ollama.url, timeout=30) as client:
        yield client


def request(path: str, body: dict[str, Any]) -> bytes:
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    head += f"Content-Length: {len(data)}\r\n\r\n"
    return head.encode() + data


def packets(ollama: SimulatorThread, path: str, body: dict[str, Any]) -> tuple[list[bytes], str]:
    """What each read of a raw socket got, and how the connection ended: end, closed or reset."""
    received: list[bytes] = []
    with socket.create_connection((ollama.host, ollama.port), 30) as connection:
        connection.sendall(request(path, body))
        try:
            while data := connection.recv(1 << 20):
                received.append(data)
                if b"".join(received[-6:]).endswith(b"\r\n0\r\n\r\n"):
                    return received, "end"
        except ConnectionResetError:
            return received, "reset"
    return received, "closed"


def chunks_of(data: bytes) -> list[bytes]:
    """The chunks of a chunked answer, as far as it goes."""
    chunks = []
    rest = data.partition(b"\r\n\r\n")[2]
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        length = int(size, 16)
        chunks.append(rest[:length])
        rest = rest[length + 2 :]
    return [chunk for chunk in chunks if chunk]


def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition never came true"
        threading.Event().wait(0.002)


@pytest.mark.parametrize(("path", "body"), STREAMS)
@pytest.mark.parametrize(
    ("words", "ending", "state"),
    [("reset-3", "reset", "broken"), ("cut-3", "closed", "broken"), ("end-3", "end", "finished")],
)
def test_a_stream_breaks_after_the_pieces_named(ollama, path, body, words, ending, state):
    received, how = packets(ollama, path, {"model": f"fault-{words}", **body})

    record = ollama.calls[0]
    assert how == ending
    assert (record.state, len(record.pieces), record.output_tokens, record.complete) == (state, 3, 3, False)
    assert not any(mark in b"".join(received) for mark in END_MARKS)
    assert record.text.split()[-1].encode() in b"".join(received)


@pytest.mark.parametrize(("path", "body"), STREAMS)
def test_a_failure_in_mid_stream_is_told_natively_and_swallowed_elsewhere(http, ollama, path, body):
    response = http.post(path, json={"model": "fault-error-3", **body})

    assert response.status_code == 200
    assert not any(mark in response.content for mark in END_MARKS)
    if path.startswith("/api/"):
        last = json.loads(response.content.split(b"\n")[-2])
        assert list(last) == ["error"]
    elif path in ("/v1/chat/completions", "/v1/completions"):
        odd = json.loads(response.content.split(b"\n\n")[-2].removeprefix(b"data: "))
        assert odd["model"] == ""
        assert odd["choices"][0]["finish_reason"] is None
    else:
        assert b"simulated fault" not in response.content


@pytest.mark.parametrize(("path", "body"), STREAMS)
def test_a_failure_before_the_first_piece_is_a_status(http, path, body):
    assert http.post(path, json={"model": "fault-error-0", **body}).status_code == 500


def test_a_failure_may_be_told_the_old_way(http):
    response = http.post("/api/chat", json={"model": "fault-oldstatus", "messages": HELLO})

    assert response.status_code == 200
    assert list(json.loads(response.content)) == ["error"]


@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        ("status-507", 507, "simulated fault"),
        ("busy", 503, "server busy, please try again.  maximum pending requests exceeded"),
        ("notfound-plain", 404, "model 'fault-notfound-plain' not found"),
        ("notfound-pull", 404, 'model "fault-notfound-pull" not found, try pulling it first'),
        ("notfound-tag", 404, "model 'fault-notfound-tag:latest' not found"),
    ],
)
def test_a_fault_may_replace_the_answer(http, words, status, text):
    response = http.post("/api/chat", json={"model": f"fault-{words}", "messages": HELLO})
    embedded = http.post("/v1/embeddings", json={"model": f"fault-{words}", "input": "x"})

    assert (response.status_code, response.json()) == (status, {"error": text})
    assert (embedded.status_code, embedded.json()["error"]["message"]) == (status, text)


def test_a_panic_has_no_body_and_a_redirect_leads_elsewhere(http):
    panic = http.post("/api/chat", json={"model": "fault-panic", "messages": HELLO})
    redirect = http.post("/api/chat", json={"model": "fault-redirect", "messages": HELLO})

    assert (panic.status_code, panic.content) == (500, b"")
    assert (redirect.status_code, redirect.headers["location"]) == (302, "/api/version?followed")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("missing", (None, None)),
        ("zero", (0, 0)),
        ("negative", (-5, -5)),
        ("huge", (2**60, 2**60)),
        ("text", ("12", "12")),
    ],
)
def test_counters_may_be_absurd(http, ollama, words, expected):
    asked = {"model": f"fault-counters-{words}", "messages": HELLO}

    whole = http.post("/api/chat", json={**asked, "stream": False}).json()
    streamed = json.loads(http.post("/api/chat", json=asked).content.split(b"\n")[-2])

    for answer in (whole, streamed):
        assert (answer.get("prompt_eval_count"), answer.get("eval_count")) == expected
    assert ollama.calls[0].output_tokens == len(ollama.calls[0].pieces) > 0


@pytest.mark.parametrize(("path", "body"), STREAMS)
@pytest.mark.parametrize("words", ["missing", "zero", "negative", "huge", "text"])
def test_absurd_counters_break_no_dialect(http, path, body, words):
    response = http.post(path, json={"model": f"fault-counters-{words}", **body})

    assert any(mark in response.content for mark in END_MARKS)


def test_cached_tokens_are_told(http):
    asked = {"model": "fault-cached-5", "messages": HELLO, "stream": False}

    assert http.post("/api/chat", json=asked).json()["prompt_eval_cached_count"] == 5
    usage = http.post("/v1/chat/completions", json=asked).json()["usage"]
    assert usage["prompt_tokens_details"] == {"cached_tokens": 5}


def test_the_guard_against_repetition_ends_the_stream_without_a_word(http, ollama):
    streamed = http.post("/api/chat", json={"model": "fault-repeat", "messages": HELLO})
    whole = http.post("/api/chat", json={"model": "fault-repeat", "messages": HELLO, "stream": False}).json()
    v1 = http.post("/v1/chat/completions", json={"model": "fault-repeat", "messages": HELLO}).json()

    assert streamed.content.count(b"\n") == 30
    assert b'"done":true' not in streamed.content
    assert (whole["done"], "eval_count" in whole) == (False, False)
    assert v1["choices"][0]["finish_reason"] is None
    assert v1["usage"] == {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}


@pytest.mark.parametrize("words", ["reset-0", "cut-0"])
def test_an_answer_that_is_not_streamed_breaks_in_the_middle(ollama, words):
    received, how = packets(
        ollama, "/api/chat", {"model": f"fault-{words}", "messages": HELLO, "stream": False}
    )

    head, _, body = b"".join(received).partition(b"\r\n\r\n")
    promised = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    assert how == ("reset" if words == "reset-0" else "closed")
    assert len(body) == promised // 2


@pytest.mark.parametrize("size", [1, 7, 65536])
def test_packets_have_the_size_asked_for(ollama, http, size):
    pieces = 1500 if size > 1000 else 20
    asked = {"messages": HELLO, "model": f"fault-packet-{size}.pieces-{pieces}", "think": False}

    received, how = packets(ollama, "/api/chat", asked)

    chunks = chunks_of(b"".join(received))
    assert how == "end"
    assert {len(chunk) for chunk in chunks[:-1]} == {size}
    assert json.loads(b"".join(chunks).split(b"\n")[-2])["eval_count"] == pieces


def test_lines_are_cut_inside_characters(ollama):
    received, _ = packets(ollama, "/api/chat", {"messages": HELLO, "model": "fault-utf8", "think": False})

    chunks = chunks_of(b"".join(received))
    assert b"".join(chunks).decode()
    with pytest.raises(UnicodeDecodeError):
        chunks[0].decode()


def test_separators_of_unicode_stay_as_they_are(http):
    response = http.post("/api/chat", json={"messages": HELLO, "model": "fault-u2028"})

    assert "\u2028".encode() in response.content
    assert "\x85".encode() in response.content
    assert all(json.loads(line) for line in response.content.split(b"\n")[:-1])


def test_other_models_escape_them_as_go_does(http):
    response = http.post(
        "/api/chat", json={"messages": [{"role": "user", "content": "<a>\u2028&"}], "model": "tiny:1b"}
    )

    assert b"\\u003ca\\u003e" in response.content
    assert "\u2028".encode() not in response.content


def test_lines_may_end_in_crlf(http):
    assert b"\r\n{" in http.post("/api/chat", json={"messages": HELLO, "model": "fault-crlf"}).content


def test_a_line_may_be_enormous(http):
    response = http.post("/api/chat", json={"messages": HELLO, "model": "fault-line-3", "think": False})

    assert len(response.content.split(b"\n")[0]) > 3 * 2**20


def test_a_context_may_be_enormous(http):
    asked = {"model": "fault-context-100000", "prompt": "x", "options": {"num_predict": 9}}

    response = http.post("/api/generate", json=asked)

    assert len(json.loads(response.content.split(b"\n")[-2])["context"]) == 100_000


def test_an_answer_may_be_compressed_and_set_a_cookie(ollama):
    body = {"messages": HELLO, "model": "fault-gzip.cookie", "think": False}

    received, _ = packets(ollama, "/api/chat", body)

    data = b"".join(received)
    assert b"content-encoding: gzip" in data.lower()
    assert b"set-cookie: upstream=1" in data.lower()
    assert gzip.decompress(b"".join(chunks_of(data))).decode().endswith("}\n")


def test_garbage_reason_and_logprobs(http):
    garbage = http.post("/api/chat", json={"messages": HELLO, "model": "fault-garbage-2"})
    reasonless = http.post("/api/chat", json={"messages": HELLO, "model": "fault-noreason", "stream": False})
    probable = http.post("/v1/chat/completions", json={"messages": HELLO, "model": "fault-logprobs"})

    assert garbage.content.endswith(b"}\nthis line is not what you expect\n")
    assert "done_reason" not in reasonless.json()
    assert probable.json()["choices"][0]["logprobs"]["content"][0]["bytes"]


@pytest.mark.parametrize(("words", "place"), [("tool-early", -2), ("tool-done", -1)])
def test_a_tool_call_comes_where_it_is_told_to(http, words, place):
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    asked = {"model": f"fault-{words}.think-2", "messages": HELLO, "tools": [tool]}

    response = http.post("/api/chat", json=asked)

    lines = [json.loads(line) for line in response.content.split(b"\n")[:-1]]
    assert ["tool_calls" in line["message"] for line in lines].index(True) == len(lines) + place


@pytest.mark.parametrize(
    ("words", "head_comes"),
    [("first-500", False), ("load-500", False), ("silence-0-500", True), ("silence-3-500", True)],
)
def test_silence_falls_where_it_is_told_to(http, ollama, words, head_comes):
    response = http.post("/api/chat", json={"model": f"fault-{words}", "messages": HELLO})

    # By the log of the server: when a head comes to a client is a matter of the machine.
    [record] = ollama.calls
    before, after = record.first_byte_at - record.started_at, record.ended_at - record.first_byte_at
    assert (after if head_comes else before) >= 0.49
    assert b'"done":true' in response.content


def test_an_endless_stream_ignores_the_limit_until_the_client_leaves(ollama, http):
    asked = {"model": "fault-endless", "messages": HELLO, "options": {"num_predict": 5}}

    with http.stream("POST", "/api/chat", json=asked) as response:
        lines = response.iter_lines()
        for _ in range(200):
            next(lines)
    until(lambda: ollama.calls[0].state != "active")

    assert ollama.calls[0].state == "aborted"
    assert ollama.calls[0].client_closed_at
    assert len(ollama.calls[0].pieces) >= 200


@pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/completions", "/v1/messages"])
def test_an_endless_answer_that_is_not_streamed_waits_for_the_client_to_leave(ollama, http, path):
    asked = {"model": "fault-endless", "messages": HELLO, "max_tokens": 5, "stream": False}

    with socket.create_connection((ollama.host, ollama.port), 5) as connection:
        connection.sendall(request(path, asked))
        until(lambda: bool(ollama.calls) and len(ollama.calls[0].pieces) == WITHHELD_PIECES)
        assert http.get("/api/version").status_code == 200
        assert (ollama.calls[0].state, len(ollama.calls[0].pieces)) == ("active", WITHHELD_PIECES)
    until(lambda: ollama.calls[0].state == "aborted")

    assert ollama.calls[0].client_closed_at


@pytest.mark.parametrize(
    "body",
    [
        {"model": "fault-first-60000", "messages": HELLO},
        {"model": "fault-silence-2-60000", "messages": HELLO},
        {"model": "fault-silence-2-60000", "messages": HELLO, "stream": False},
    ],
)
def test_a_client_that_leaves_in_silence_is_noticed_at_once(ollama, body):
    with socket.create_connection((ollama.host, ollama.port), 30) as connection:
        connection.sendall(request("/api/chat", body))
        until(lambda: bool(ollama.calls) and ollama.calls[0].prompt_tokens > 0)
    left = time.time()
    until(lambda: ollama.calls[0].state == "aborted")

    assert ollama.calls[0].client_closed_at - left < 30
    assert ollama.log.counts() == {"active": 0, "finished": 0, "aborted": 1, "broken": 0}


def test_a_client_that_stops_at_the_last_object_has_not_aborted(ollama):
    with socket.create_connection((ollama.host, ollama.port), 30) as connection:
        connection.sendall(request("/api/chat", {"model": "fault-linger-60000", "messages": HELLO}))
        received = b""
        while b'"done":true' not in received:
            received += connection.recv(65536)
    until(lambda: ollama.calls[0].state != "active")

    assert ollama.calls[0].state == "finished"
    assert ollama.calls[0].client_closed_at


@pytest.mark.parametrize("words", [w for w in faults.STOCK if w != "endless"])
def test_every_usual_fault_ends_and_is_recorded(ollama, words):
    packets(
        ollama, "/api/chat", {"model": f"fault-{words}", "messages": HELLO, "options": {"num_predict": 8}}
    )

    until(lambda: ollama.calls[0].state != "active")
    assert ollama.calls[0].fault == words
    assert ollama.calls[0].state in ("finished", "broken")


def test_faults_are_scripted_by_model_marker_and_times(http):
    http.post(
        "/_sim/faults", json={"fault": "status-500", "model": "TINY:1b", "marker": "herons", "times": 2}
    )

    statuses = [
        http.post(
            "/api/chat", json={"model": model, "messages": [{"role": "user", "content": text}]}
        ).status_code
        for model, text in [
            ("tiny:1b", "herons"),
            ("small", "herons"),
            ("tiny:1b", "cranes"),
            ("tiny:1b", "herons"),
            ("tiny:1b", "herons"),
        ]
    ]

    assert statuses == [500, 200, 200, 500, 200]


def test_faults_of_a_list_name_its_path(http):
    http.post("/_sim/faults", json={"fault": "status-500"})
    unharmed = http.get("/api/tags")
    http.post("/_sim/faults", json={"fault": "busy", "path": "/api/tags", "times": 1})

    assert unharmed.status_code == 200
    assert http.get("/api/tags").status_code == 503
    assert http.get("/api/tags").status_code == 200
    assert http.delete("/_sim/faults").json() == {"faults": []}


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/_sim/faults", {"fault": "nonsense"}),
        ("POST", "/_sim/faults", {"fault": "busy", "modell": "x"}),
        ("POST", "/_sim/faults", {"fault": "busy", "model": "/x"}),
        ("POST", "/_sim/faults", []),
        ("POST", "/_sim/settings", {"odd": 1}),
        ("POST", "/_sim/settings", {"piece_delay": "soon"}),
        ("POST", "/_sim/faults", {"fault": "busy", "times": "2"}),
        ("GET", "/_sim/log?since=x", {}),
        ("POST", "/_sim/models", {"name": ""}),
    ],
)
def test_a_control_request_that_makes_no_sense_is_refused(http, method, path, body):
    assert http.request(method, path, json=body).status_code == 400


def test_the_log_tells_what_came_and_what_went(http, ollama):
    http.get("/api/tags")
    asked = {
        "Model": "tiny:1b",
        "messages": [{"role": "user", "content": "marker-17"}],
        "options": {"num_predict": 3},
    }
    response = http.post("/api/chat?x=1", json=asked, headers={"X-Secret": "yes"})

    (record,) = http.get("/_sim/log", params={"marker": "marker-17"}).json()["requests"]
    assert (record["serial"], record["method"], record["target"], record["path"]) == (
        2,
        "POST",
        "/api/chat?x=1",
        "/api/chat",
    )
    assert ["X-Secret", "yes"] in record["headers"]
    assert json.loads(record["body"]) == asked
    assert record["fields"]["model"] == "tiny:1b"
    assert (record["model"], record["stream"], record["status"]) == ("tiny:1b", True, 200)
    assert record["pieces"] == ["marker-17", *record["pieces"][1:]]
    assert (record["output_tokens"], record["counters"]["eval_count"], record["done_reason"]) == (
        3,
        3,
        "length",
    )
    assert record["sent_bytes"] > len(response.content)
    assert record["started_at"] <= record["first_byte_at"] <= record["ended_at"]
    assert http.get("/_sim/counts").json() == {
        "active": 0,
        "finished": 2,
        "aborted": 0,
        "broken": 0,
        "loads": {"tiny:1b": 1},
    }
    assert http.delete("/_sim/log").json() == {"requests": []}
    assert ollama.requests == []
    http.get("/api/version")
    assert ollama.requests[0].serial == 3


def test_settings_set_the_pace_and_the_length(http):
    http.post("/_sim/settings", json={"piece_delay": 0.02, "pieces": 6, "load_delay": 0.1})
    started = time.monotonic()

    answer = http.post("/api/chat", json={"model": "tiny:1b", "messages": HELLO, "stream": False}).json()

    assert answer["eval_count"] == 6
    assert answer["load_duration"] >= 100_000_000
    assert time.monotonic() - started >= 0.1 + 5 * 0.02


def test_a_connection_serves_requests_one_after_another(ollama):
    with socket.create_connection((ollama.host, ollama.port), 30) as connection:
        connection.sendall(b"GET /api/version HTTP/1.1\r\nHost: localhost\r\n\r\n" * 2)
        received = b""
        while received.count(b'"version"') < 2:
            received += connection.recv(65536)

    assert len({record.connection for record in ollama.requests}) == 1


def test_a_chunked_body_and_expect_are_read(ollama):
    body = json.dumps({"model": "tiny:1b", "prompt": "x", "stream": False}).encode()
    head = b"POST /api/generate HTTP/1.1\r\nHost: localhost\r\n"
    head += b"Expect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n"
    with socket.create_connection((ollama.host, ollama.port), 30) as connection:
        connection.sendall(head)
        assert connection.recv(100).startswith(b"HTTP/1.1 100")
        connection.sendall(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")


def test_what_is_not_http_is_refused(ollama):
    with socket.create_connection((ollama.host, ollama.port), 30) as connection:
        connection.sendall(b"hello\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 400")


def test_stopping_breaks_what_is_open():
    with SimulatorThread() as ollama:
        connection = socket.create_connection((ollama.host, ollama.port), 30)
        connection.sendall(request("/api/chat", {"model": "fault-first-60000", "messages": HELLO}))
        until(lambda: bool(ollama.calls))

    with connection:
        assert connection.recv(100) == b""
    assert ollama.calls[0].state == "aborted"


def test_a_reset_simulator_is_as_new(ollama, http):
    ollama.install("fresh")
    ollama.fault("busy", path="/api/tags")
    ollama.settings.pieces = 3
    http.post("/api/chat", json={"model": "tiny:1b", "messages": HELLO})

    ollama.reset()

    assert ollama.requests == []
    assert http.get("/_sim/counts").json()["loads"] == {}
    assert "fresh:latest" not in {model["name"] for model in http.get("/api/tags").json()["models"]}
    assert ollama.settings.pieces is None


def test_the_command_prints_its_address_and_ends_on_sigterm():
    environment = {**os.environ, "DJANGO_SETTINGS_MODULE": "config.settings"}
    command = [sys.executable, "-m", "django", "simulate_ollama", "--fault-models", "--port"]
    running = subprocess.Popen([*command, "0"], env=environment, stdout=subprocess.PIPE, text=True)
    assert running.stdout is not None
    try:
        line = running.stdout.readline()
        url = line.removeprefix("Simulated Ollama at ").strip()
        listed = httpx.get(f"{url}/api/tags", timeout=30).json()["models"]
        second = subprocess.run(
            [*command, url.rpartition(":")[2]],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        running.send_signal(signal.SIGTERM)
        rest, _ = running.communicate(timeout=30)
    finally:
        running.kill()
        running.wait()

    assert "fault-reset-3:latest" in {model["name"] for model in listed}
    assert (running.returncode, rest) == (0, "")
    assert second.returncode == 1
    assert "Cannot listen on" in second.stderr
