"""Request bodies are read as Ollama reads them, or refused."""

import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.dialects import fields, ollama
from proxy.dialects.strict_json import MAX_DEPTH, MAX_INTEGER, loads, read_object
from proxy.exceptions import BadRequest
from tests import hostile

KNOWN = {"model": fields.name, "stream": fields.flag, "keep_alive": None}


@pytest.mark.parametrize("body", hostile.BROKEN_JSON.values(), ids=hostile.BROKEN_JSON)
def test_a_broken_body_is_a_bad_request(body):
    with pytest.raises(BadRequest):
        loads(body)


@pytest.mark.parametrize("body", hostile.BROKEN_JSON.values(), ids=hostile.BROKEN_JSON)
def test_a_broken_body_is_refused_in_no_time(body):
    started = time.process_time()

    with pytest.raises(BadRequest):
        ollama.parse_chat(body)

    assert time.process_time() - started < 1


def test_the_refusal_of_a_field_that_is_there_twice_names_it():
    with pytest.raises(BadRequest) as refused:
        loads(b'{"model":"a","x":{"y":1},"model":"b"}')

    assert refused.value.param == "model"


def test_a_free_object_may_have_names_that_differ_in_case():
    body = b'{"x":{"type":1,"Type":2,"\xc5\xbftream":3,"stream":4}}'

    assert loads(body) == {"x": {"type": 1, "Type": 2, "\u017ftream": 3, "stream": 4}}


def test_nesting_is_counted_in_values_and_not_in_texts():
    deep: dict[str, Any] = {"x": "[{" * 1000}
    for _ in range(MAX_DEPTH - 1):
        deep = {"x": deep}

    assert loads(json.dumps(deep).encode()) == deep
    with pytest.raises(BadRequest):
        loads(json.dumps({"x": deep}).encode())


@pytest.mark.parametrize("number", [MAX_INTEGER, -MAX_INTEGER, 0, -1])
def test_integers_of_64_bits_are_read(number):
    assert loads(b'{"x":%d}' % number) == {"x": number}


@pytest.mark.parametrize("number", [MAX_INTEGER + 1, -MAX_INTEGER - 1, 10**30])
def test_larger_integers_are_refused(number):
    with pytest.raises(BadRequest):
        loads(b'{"x":%d}' % number)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        pytest.param(rb'{"x":"\ud83d\ude00"}', {"x": "\U0001f600"}, id="whole pair"),
        pytest.param(rb'{"x":"a\ud83d"}', {"x": "a\ufffd"}, id="first half alone"),
        pytest.param(rb'{"x":"\uDE00b"}', {"x": "\ufffdb"}, id="second half alone"),
        pytest.param(rb'{"\ud800":1}', {"\ufffd": 1}, id="in a name"),
        pytest.param(rb'{"x":"\\ud800"}', {"x": "\\ud800"}, id="escaped backslash"),
    ],
)
def test_half_a_character_is_read_as_go_does(written, read):
    assert loads(written) == read


def test_names_that_go_reads_alike_because_of_half_characters_are_refused():
    with pytest.raises(BadRequest):
        loads(rb'{"\ud800":1,"\ud801":2}')


def test_a_null_counts_as_absent():
    assert read_object({"model": None, "stream": False}, "", KNOWN) == {"stream": False}


def test_fields_without_a_reader_and_unknown_ones_are_dropped():
    assert read_object({"model": "a", "keep_alive": -1, "other": 1}, "", KNOWN) == {"model": "a"}


@pytest.mark.parametrize(
    "names",
    [
        ["Model"],
        ["model", "MODEL"],
        ["\u017ftream"],
        ["\u212aeep_alive"],
        ["other", "Other"],
        ["o\u017f", "os"],
    ],
)
def test_names_that_go_takes_for_one_another_are_refused(names):
    with pytest.raises(BadRequest, match="differs only in letter case"):
        read_object(dict.fromkeys(names), "", KNOWN)


_scalars = (
    st.none()
    | st.booleans()
    | st.integers(-MAX_INTEGER, MAX_INTEGER)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)
_values = st.recursive(
    _scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text(), _values, max_size=5), st.booleans())
def test_whatever_json_writes_is_read_back(value, as_ascii):
    body = json.dumps(value, ensure_ascii=as_ascii).encode()

    assert loads(body) == value


@given(st.binary(max_size=60) | st.text(alphabet='{}[]":,\\u0d8a1eE.-+ tfn\n', max_size=60).map(str.encode))
@settings(max_examples=300)
def test_nothing_is_read_that_json_does_not_read_as_the_same(body):
    try:
        value = loads(body)
    except BadRequest:
        return

    assert json.loads(body.decode()) == value


@given(
    st.dictionaries(
        st.text(alphabet="abcKks\u017f\u212a_", min_size=1, max_size=3), st.integers(), max_size=6
    ),
    st.sampled_from(["", "k", "as", "sk_"]),
)
def test_no_two_names_that_fold_alike_are_ever_read(value, known):
    folded = [name.casefold() for name in value]
    distinct = len(set(folded)) == len(folded) and not any(
        name != known and name.casefold() == known for name in value
    )

    try:
        read_object(value, "", {known: fields.integer})
    except BadRequest:
        assert not distinct
    else:
        assert distinct
