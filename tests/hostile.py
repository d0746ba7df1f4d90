"""What hostile clients send, as tables and at random.

Each table says what has to become of its entries. They are read by the tests of
the readers and by those that go through a socket to the simulated Ollama, whose
own reading of names and JSON is independent of the gateway's.
"""

import json
from collections.abc import Iterable

from hypothesis import strategies as st

MODEL = "tiny"

GOOD_CHAT = b'{"model":"tiny","messages":[{"role":"user","content":"hi"}]}'


def _with(extra: str) -> bytes:
    """A good chat request with ``extra`` in front of its other fields."""
    return b"{" + extra.encode() + b"," + GOOD_CHAT[1:]


_LEAVES = st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats(-9, 9) | st.text(max_size=5)
_ANYTHING = st.recursive(
    _LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
)


def bodies(known: Iterable[str]) -> st.SearchStrategy[dict[str, object]]:
    """Bodies with fields that a door knows, and with others; in each is anything that JSON can say."""
    return st.dictionaries(st.sampled_from(sorted(known)) | st.text(max_size=5), _ANYTHING, max_size=6)


# Bodies that every door refuses with a 400, for reasons of their JSON alone.
BROKEN_JSON: dict[str, bytes] = {
    "empty": b"",
    "white space": b" \n\t ",
    "cut off": GOOD_CHAT[:-1],
    "not JSON": b"model=tiny&messages=hi",
    "a list": b"[" + GOOD_CHAT + b"]",
    "a string": b'"tiny"',
    "null": b"null",
    "a second value": GOOD_CHAT + b' {"model":"big"}',
    "rubbish behind it": GOOD_CHAT + b"x",
    "NUL behind it": GOOD_CHAT + b"\x00",
    "byte order mark": b"\xef\xbb\xbf" + GOOD_CHAT,
    "UTF-16": GOOD_CHAT.decode().encode("utf-16"),
    "UTF-16 without a mark": GOOD_CHAT.decode().encode("utf-16-le"),
    "UTF-32": GOOD_CHAT.decode().encode("utf-32"),
    "Latin-1": '{"model":"tiny","messages":[{"role":"user","content":"é"}]}'.encode("latin-1"),
    "surrogates in UTF-8": b'{"model":"tiny","messages":[{"role":"user","content":"\xed\xa0\x80"}]}',
    "overlong UTF-8": b'{"model":"tin\xc1\xb9"}',
    "raw line feed in a string": b'{"model":"tiny","messages":[{"role":"user","content":"a\nb"}]}',
    "comment": b"/* */" + GOOD_CHAT,
    "comma at the end": GOOD_CHAT[:-1] + b",}",
    "single quotes": GOOD_CHAT.replace(b'"', b"'"),
    "NaN": _with('"temperature":NaN'),
    "Infinity": _with('"temperature":Infinity'),
    "minus Infinity": _with('"temperature":-Infinity'),
    "infinite by its exponent": _with('"temperature":1e400'),
    "2 to the power of 63 and one": _with('"seed":9223372036854775809'),
    "5,000 digits": _with('"seed":' + "9" * 5000),
    "65 lists in each other": _with('"x":' + "[" * 65 + "]" * 65),
    "100,000 lists in each other": _with('"x":' + "[" * 100_000 + "]" * 100_000),
    "100,000 objects in each other": _with('"x":' + '{"a":' * 100_000 + "1" + "}" * 100_000),
    "100,000 lists that never end": b"[" * 100_000,
    "half a million numbers": _with('"x":[' + "1," * 600_000 + "1]"),
    "same field twice": _with('"model":"big"'),
    "same unknown field twice": _with('"x":1,"x":2'),
    "same field twice, once escaped": _with('"\\u006dodel":"big"'),
    "same name twice in a free object": _with('"x":{"y":1,"y":2}'),
}

# Names that Go takes for one that is known. Each is refused wherever that field is known.
FOLDED_NAMES: dict[str, list[str]] = {
    "model": ["Model", "MODEL", "mOdEl"],
    "messages": ["Messages", "me\u017fsages", "me\u017f\u017fages"],
    "stream": ["Stream", "\u017ftream"],
    "options": ["Options", "option\u017f"],
    "keep_alive": ["Keep_Alive", "\u212aeep_alive"],
    "tools": ["Tools", "tool\u017f"],
    "format": ["Format"],
    "think": ["Think", "thin\u212a"],
    "_debug_render_only": ["_Debug_Render_Only", "_DEBUG_RENDER_ONLY"],
    "max_tokens": ["Max_Tokens", "max_to\u212aens", "max_token\u017f"],
    "stream_options": ["STREAM_OPTIONS", "\u017ftream_option\u017f"],
}

# Fields that never reach Ollama, with a value that would do harm; a request with one is served without it.
NATIVE_DROPPED: dict[str, object] = {
    "keep_alive": -1,
    "shift": False,
    "_debug_render_only": True,
    "upstream": "http://169.254.169.254/",
    "base_url": "http://127.0.0.1:1/",
    "x": {"model": "big"},
}
LOAD_OPTIONS: dict[str, object] = {
    "num_ctx": 262_144,
    "num_batch": 8192,
    "num_gpu": 0,
    "main_gpu": 7,
    "use_mmap": False,
    "num_thread": 1,
    "draft_num_predict": 999,
}
OPENAI_DROPPED: dict[str, object] = {
    "_debug_render_only": True,
    "keep_alive": 0,
    "options": {"num_ctx": 262_144},
    "num_ctx": 262_144,
    "tool_choice": "required",
    "store": True,
    "user": "ada",
    "logit_bias": {"1": 100},
    "parallel_tool_calls": True,
}

# All of them are the model that is listed as ``tiny:latest``.
SPELLINGS = [
    "tiny",
    "TINY",
    "tiny:LATEST",
    "library/tiny",
    "Library/Tiny:latest",
    "registry.ollama.ai/library/tiny",
    "REGISTRY.ollama.ai/library/tiny",
    "https://registry.ollama.ai/library/tiny:latest",
    "http://registry.ollama.ai/library/tiny",
    "x://registry.ollama.ai/library/tiny",
    "tiny:local",
    "tiny:latest:local",
    "tiny: Local ",
    " tiny ",
    "\u3000tiny\u0085\u00a0",
]

# Ollama sends these to its vendor, on the account of the host.
CLOUD_NAMES = [
    "tiny:cloud",
    "tiny:CLOUD",
    "tiny: cloud ",
    "tiny:latest:cloud",
    "tiny:latest-cloud",
    "ns/tiny:7b-Cloud",
]

# Ollama refuses these, and so do we.
INVALID_NAMES = [
    "",
    "   ",
    "x:",
    ":x",
    "/x",
    "x/",
    "a//b",
    "a/b/c/d",
    "http://tiny",
    "tiny@sha256:" + "0" * 64,
    "tiny:latest:latest",
    "tiny:cloud:local",
    "tiny :local",
    "tiny:local:cloud",
    "tiny:local:local",
    "na.me/tiny",
    "-tiny",
    ".tiny",
    "ti ny",
    "tiny\x00",
    "tiny\x1c",
    "\x1ftiny",
    "tin\u0443",
    "\u017fmall",
    "\uff54iny",
    "tiny\n:latest",
    "../tiny",
    "tiny?x=1",
    "tiny#x",
    "tiny%2e",
    "t" * 81,
    "h" * 351 + "/a/b",
    "x" * 100_000,
]

# What a client may not put into a picture: nothing is ever fetched.
IMAGE_LINKS = [
    "http://169.254.169.254/latest/meta-data/",
    "https://example.org/cat.png",
    "//example.org/cat.png",
    "file:///etc/passwd",
    "ftp://example.org/cat.png",
    "data:text/html;base64,PGI+",
    "data:image/svg+xml;base64,PHN2Zz4=",
    "HTTP://example.org/cat.png",
]


def chat_with(**fields: object) -> bytes:
    """A good chat request with further fields."""
    return json.dumps({**json.loads(GOOD_CHAT), **fields}).encode()
