"""How the simulated Ollama reads names, JSON and paths."""

import json
import socket
from pathlib import Path

import pytest

from proxy.simulator import SimulatorThread, faults, go_json, names
from proxy.simulator.go_json import Either, ListOf, Pointer, Struct
from tests.conftest import PATIENCE_SECONDS

TINY = f"{names.DEFAULT_HOST}/library/tiny:latest"
LONG_S = "\u017f"
KELVIN = "\u212a"

MESSAGE = Struct("Message", {"role": str, "content": str})
REQUEST = Struct(
    "Request",
    {
        "model": str,
        "stream": Pointer(bool),
        "keep_alive": object,
        "options": dict,
        "messages": ListOf(MESSAGE),
        "max_tokens": Pointer(int),
        "nested": Struct("Nested", {"include_usage": bool, "other": str}),
        "input": Either(ListOf(MESSAGE)),
        "temperature": float,
    },
)


@pytest.mark.parametrize(
    "spelling",
    [
        "tiny",
        "TINY",
        "tiny:LATEST",
        "library/tiny",
        "Library/Tiny:latest",
        f"{names.DEFAULT_HOST}/library/tiny",
        f"https://{names.DEFAULT_HOST}/library/tiny:latest",
        f"x://{names.DEFAULT_HOST}/library/tiny",
        "tiny:local",
        "tiny:latest:local",
        "tiny: Local ",
        " tiny ",
        "\u3000tiny\u2028",
    ],
)
def test_all_spellings_of_one_model_mean_the_same(spelling):
    name = names.parse(spelling)

    assert name.key == TINY
    assert not name.cloud


@pytest.mark.parametrize("spelling", ["tiny:cloud", "tiny:latest-cloud", "tiny:latest:cloud", "tiny: CLOUD"])
def test_a_cloud_ending_leads_to_the_cloud(spelling):
    name = names.parse(spelling)

    assert (name.key, name.cloud) == (TINY, True)


@pytest.mark.parametrize(
    "spelling",
    [
        "",
        "x:",
        "/x",
        "a b",
        "ti\u00f1y",
        "tiny@sha256:ab",
        "-x",
        "a" * 81,
        "\x1ctiny",
        "https://tiny",
        "a/b/c/d",
    ],
)
def test_a_malformed_name_is_refused(spelling):
    with pytest.raises(names.BadName, match="invalid model name"):
        names.parse(spelling)


def test_two_sources_are_refused():
    with pytest.raises(names.BadName, match="not both"):
        names.parse("tiny:cloud:local")


def test_short_names_leave_out_the_defaults():
    assert names.parse(TINY).short == "tiny:latest"
    assert names.parse("ada/tiny:1b").short == "ada/tiny:1b"
    assert names.parse("host.example:99/library/tiny").short == "host.example:99/library/tiny:latest"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        pytest.param('{"model":"a","MODEL":"b"}', {"model": "b"}, id="the last one wins in any letter case"),
        pytest.param('{"MODEL":"b","model":"a"}', {"model": "a"}, id="an exact name has no precedence"),
        pytest.param(f'{{"{LONG_S}tream":false}}', {"stream": False}, id="a long s is an s"),
        pytest.param(f'{{"{KELVIN}eep_alive":0}}', {"keep_alive": 0}, id="a Kelvin sign is a k"),
        pytest.param('{"\\u017ftream":true}', {"stream": True}, id="a long s may be escaped"),
        pytest.param(
            '{"options":{"a":1,"b":1},"Options":{"b":2}}', {"options": {"a": 1, "b": 2}}, id="maps are merged"
        ),
        pytest.param('{"options":{"A":1}}', {"options": {"A": 1}}, id="keys of a map are exact"),
        pytest.param(
            '{"nested":{"include_usage":true},"Nested":{"other":"x"}}',
            {"nested": {"include_usage": True, "other": "x"}},
            id="structs are merged",
        ),
        pytest.param(
            '{"messages":[{"role":"user","content":"a"}],"Messages":[{"Content":"b"}]}',
            {"messages": [{"role": "user", "content": "b"}]},
            id="elements of a repeated array are merged",
        ),
        pytest.param(
            '{"model":"a"} {"model":"b"} rubbish', {"model": "a"}, id="only the first value is read"
        ),
        pytest.param('{"model":"a","Model":null}', {"model": "a"}, id="null leaves a plain field alone"),
        pytest.param('{"stream":true,"stream":null}', {"stream": None}, id="null empties a pointer"),
        pytest.param('{"unknown":1}', {}, id="unknown fields are ignored"),
        pytest.param('{"input":"text"}', {"input": "text"}, id="text where text or a list may be"),
        pytest.param(
            '{"input":[{"ROLE":"user"}]}', {"input": [{"role": "user"}]}, id="a list where text may be"
        ),
        pytest.param('{"temperature":1}', {"temperature": 1.0}, id="an integer is a number"),
    ],
)
def test_fields_are_read_as_go_reads_them(body, expected):
    assert go_json.read(REQUEST, body.encode()) == expected


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("", "EOF"),
        ('{"model":', "unexpected EOF"),
        ('{"model":"a', "unexpected EOF"),
        ("{model:1}", "invalid character"),
        ('{"temperature":NaN}', "invalid character"),
        (
            '{"stream":"yes"}',
            "json: cannot unmarshal string into Go struct field Request.stream of type bool",
        ),
        (
            '{"max_tokens":1.5}',
            "json: cannot unmarshal number 1.5 into Go struct field Request.max_tokens of type int",
        ),
        ('{"max_tokens":99999999999999999999}', "cannot unmarshal number"),
        ('{"messages":{}}', "cannot unmarshal object"),
        ("[" * 100_000, "exceeded max depth"),
        ('{"max_tokens":' + "9" * 5000 + "}", "exceeded max depth"),
    ],
)
def test_what_go_cannot_read_is_refused_in_its_words(body, text):
    with pytest.raises(go_json.BadJson, match=text.replace(".", r"\.")):
        go_json.read(REQUEST, body.encode())


def test_every_fault_word_is_explained_in_the_documentation():
    page = (Path(__file__).parent.parent / "docs" / "simulator.md").read_text()

    assert [word for word in faults.WORDS if f"`{word}" not in page] == []


def test_the_usual_faults_are_well_formed_and_their_models_have_valid_names():
    for words in faults.STOCK:
        assert faults.parse(words) != faults.NO_FAULT
        assert faults.of_model(names.parse(f"fault-{words}").model) == faults.parse(words)


def test_faults_join():
    assert faults.parse("reset-3.packet-1") == faults.Fault(reset_after=3, packet=1)
    assert faults.of_model("fault-nonsense") is None


@pytest.mark.parametrize(
    "words", ["", "reset", "reset-x", "reset-1-2", "nonsense", "packet-0", "counters-odd", "gzip-1"]
)
def test_malformed_faults_are_refused(words):
    with pytest.raises(faults.BadFault):
        faults.parse(words)


@pytest.mark.parametrize(
    ("method", "target", "status", "location"),
    [
        ("GET", "//api/tags", 301, "/api/tags"),
        ("POST", "//api/pull", 307, "/api/pull"),
        ("POST", "/api/./pull", 307, "/api/pull"),
        ("POST", "/api/x/../pull", 307, "/api/pull"),
        ("POST", "/api/chat/?a=1", 307, "/api/chat?a=1"),
        ("GET", "/api/tags/", 301, "/api/tags"),
        ("GET", "/api/%74ags", 200, None),
        ("GET", "/api%2Ftags", 200, None),
        ("GET", "http://elsewhere.example/api/tags", 200, None),
        ("GET", "/api/%2e%2e/api/tags", 404, None),
        ("GET", "/API/tags", 404, None),
        ("GET", "/api/tags;x", 404, None),
        ("GET", "/api/tags%20", 404, None),
        ("GET", "/v1/models/ada%2Ftiny", 404, None),
        ("GET", "/v1/messages/count_tokens", 404, None),
        ("GET", "/api/chat", 405, None),
        ("DELETE", "/api/tags", 405, None),
        ("HEAD", "/api/tags", 200, None),
    ],
)
def test_paths_are_routed_as_upstream_routes_them(raw, method, target, status, location):
    answer = raw(method, target)

    assert answer.status == status
    assert answer.header("location") == location
    if status in (404, 405):
        assert answer.header("content-type") == "text/plain"
    if status == 405:
        assert answer.header("allow")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "http://localhost:3000"}, 200),
        ({"Origin": "app://obsidian"}, 200),
        ({"Origin": "https://evil.example"}, 403),
        ({"Host": "gateway.example"}, 403),
        ({"Host": "box.local"}, 200),
        ({"Host": "192.168.1.5:11434"}, 200),
        ({"Host": "8.8.8.8"}, 403),
    ],
)
def test_foreign_origins_and_hosts_are_refused_without_a_body(raw, headers, status):
    answer = raw("GET", "/api/version", headers)

    assert answer.status == status
    assert (answer.body == b"") == (status == 403)


def test_preflight_is_answered_for_allowed_origins(raw):
    answer = raw("OPTIONS", "/api/chat", {"Origin": "http://localhost"})

    assert answer.status == 204
    assert answer.header("access-control-max-age") == "43200"


def test_a_smuggled_model_is_the_one_that_runs(ollama, raw):
    body = b'{"model":"tiny:1b","Model":"small","prompt":"x","\xc5\xbftream":false}'

    answer = raw("POST", "/api/generate", {}, body)

    assert json.loads(answer.body)["model"] == "small"
    assert ollama.calls[-1].model == "small:latest"
    assert ollama.calls[-1].fields["stream"] is False


class Answer:
    def __init__(self, data: bytes) -> None:
        head, _, self.body = data.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        self.status = int(first.split(" ")[1])
        self.headers = {
            name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)
        }

    def header(self, name: str) -> str | None:
        return self.headers.get(name)


@pytest.fixture
def ollama():
    with SimulatorThread() as simulator:
        yield simulator


@pytest.fixture
def raw(ollama):
    """Send one request exactly as given and read until the close."""

    def send(method: str, target: str, headers: dict[str, str] | None = None, body: bytes = b"") -> Answer:
        lines = {
            "Host": "localhost",
            "Connection": "close",
            "Content-Length": str(len(body)),
            **(headers or {}),
        }
        head = f"{method} {target} HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in lines.items()) + "\r\n"
        with socket.create_connection((ollama.host, ollama.port), PATIENCE_SECONDS) as connection:
            connection.sendall(head.encode() + body)
            return Answer(b"".join(iter(lambda: connection.recv(65536), b"")))

    return send
