"""What goes upstream of a native request, how large it can get, and what of a listing comes back."""

import base64
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from budgets.estimators import DEFAULT
from proxy.calls import EMBEDDINGS, single_embedding
from proxy.dialects import ollama
from proxy.dialects.prompt import IMAGE_TOKENS, MAX_IMAGES, TOOL_MARKS
from proxy.exceptions import BadRequest
from proxy.simulator import go_json, native
from tests import hostile

PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(3000)).decode()
MP3 = base64.b64encode(b"ID3" + bytes(600_000)).decode()


def chat(**fields):
    return ollama.parse_chat(hostile.chat_with(**fields))


def generate(**fields):
    return ollama.parse_generate(json.dumps({"model": "tiny", "prompt": "hi", **fields}).encode())


def embed(**fields):
    return ollama.parse_embed(json.dumps({"model": "emb", **fields}).encode())


def sent(call, model="tiny:latest", cap=7):
    return json.loads(call.upstream_body(model, cap))


def test_a_chat_is_sent_anew_with_our_cap_and_the_installed_spelling():
    call = chat(options={"temperature": 0.5, "num_predict": 100}, think=False)

    assert sent(call, "Tiny:latest") == {
        "model": "Tiny:latest",
        "messages": [{"role": "user", "content": "hi"}],
        "options": {"temperature": 0.5, "num_predict": 7},
        "think": False,
        "stream": True,
    }
    assert call.output_wish == 100


@pytest.mark.parametrize(
    ("asked", "streamed"), [({}, True), ({"stream": None}, True), ({"stream": False}, False)]
)
def test_native_calls_are_streamed_unless_they_say_no(asked, streamed):
    assert chat(**asked).stream is streamed
    assert sent(chat(**asked))["stream"] is streamed


@pytest.mark.parametrize("name", hostile.NATIVE_DROPPED)
def test_fields_that_could_do_harm_are_dropped(name):
    body = sent(chat(**{name: hostile.NATIVE_DROPPED[name]}))

    assert body == sent(chat())


@pytest.mark.parametrize("name", hostile.LOAD_OPTIONS)
def test_options_of_the_loaded_model_are_dropped(name):
    options = {"seed": 1, name: hostile.LOAD_OPTIONS[name]}

    assert sent(chat(options=options))["options"] == {"seed": 1, "num_predict": 7}
    assert sent(generate(options=options))["options"] == {"seed": 1, "num_predict": 7}
    assert sent(embed(input="a", options=options))["options"] == {"seed": 1}


@pytest.mark.parametrize("name", ["repeat_last_n", "num_keep"])
@pytest.mark.parametrize(
    ("asked", "goes_up"),
    [(64, 64), (0, 0), (-1, -1), (-(2**40), -1), (2**31 - 1, 2**20), (2**62, 2**20), (1.9e9, 2**20)],
)
def test_no_number_makes_the_sampler_set_aside_memory_without_end(name, asked, goes_up):
    assert sent(chat(options={name: asked}))["options"][name] == goes_up


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "array", "items": {"type": "integer"}, "maxItems": 10**9},
        {"type": "array", "minItems": 1e9},
        {"properties": {"a": {"anyOf": [{"type": "string", "maxLength": 2**62}]}}},
        {"properties": {"a": {"type": "string", "pattern": "^(ab){3,1000000000}$"}}},
        {"properties": {"a": {"type": "string", "pattern": "^a{1000000000}$"}}},
        {"$defs": {str(number): {"maxLength": 1000} for number in range(101)}},
    ],
)
def test_a_schema_that_grows_into_a_vast_grammar_is_refused(schema):
    with pytest.raises(BadRequest) as refused:
        chat(format=schema)

    assert refused.value.param == "format"


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"a": {"type": "string", "maxLength": 50_000}, "maxItems": {"type": "integer"}}},
        {"type": "string", "pattern": "^[a-z]{2,64}$", "minLength": -(2**62)},
    ],
)
def test_a_schema_with_the_usual_lengths_is_sent(schema):
    assert sent(chat(format=schema))["format"] == schema


FOLDED = [
    (known, folded)
    for known, variants in hostile.FOLDED_NAMES.items()
    if known not in ("max_tokens", "stream_options")
    for folded in variants
]


@pytest.mark.parametrize(("known", "folded"), FOLDED)
def test_a_name_that_go_takes_for_a_known_one_is_refused(known, folded):
    with pytest.raises(BadRequest, match="letter case"):
        chat(**{folded: "x"})


def test_a_folded_name_inside_a_message_is_refused():
    with pytest.raises(BadRequest) as refused:
        chat(messages=[{"role": "user", "content": "hi", "Content": "something else"}])

    assert refused.value.param == "messages[0].content"


def test_the_case_of_names_of_options_matters_as_it_does_upstream():
    assert "Num_Ctx" not in sent(chat(options={"Num_Ctx": 1, "SEED": 2, "seed": 3}))["options"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", 1),
        ("messages", {}),
        ("messages", ["hi"]),
        ("messages", [{"role": "user", "content": ["hi"]}]),
        ("messages", [{"role": 1}]),
        ("messages", [{"role": "user", "images": "x"}]),
        ("messages", [{"role": "assistant", "tool_calls": [{"function": {"arguments": "{}"}}]}]),
        ("messages", [{"role": "user", "content": "a"}] * (ollama.MAX_MESSAGES + 1)),
        ("stream", "false"),
        ("stream", 1),
        ("format", "xml"),
        ("format", {"enum": ["x" * 70_000]}),
        ("options", []),
        ("options", {"num_predict": "5"}),
        ("options", {"num_predict": True}),
        ("options", {"temperature": "hot"}),
        ("options", {"stop": "one"}),
        ("options", {"stop": ["x"] * 100}),
        ("tools", [{"type": "web_search"}]),
        ("tools", {"type": "function"}),
        ("keep_alive", [1]),
        ("think", "very"),
        ("think", 1),
        ("truncate", "yes"),
        ("logprobs", 1),
        ("top_logprobs", 21),
        ("top_logprobs", -1),
        ("top_logprobs", 2.0),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused_by_its_name(field, value):
    with pytest.raises(BadRequest) as refused:
        chat(**{field: value})

    assert refused.value.param is not None
    assert refused.value.param.startswith(field)


def test_a_call_without_a_model_is_refused():
    for parse in (
        ollama.parse_chat,
        ollama.parse_generate,
        ollama.parse_embed,
        ollama.parse_embeddings,
        ollama.parse_show,
    ):
        with pytest.raises(BadRequest, match="model is required"):
            parse(b'{"prompt":"hi"}')


@pytest.mark.parametrize(
    ("asked", "wish"), [(-1, None), (-2, None), (None, None), (5, 5), (5.9, 5), (10**12, 10**12)]
)
def test_the_wish_for_output_is_a_positive_number_or_none(asked, wish):
    assert chat(options={"num_predict": asked}).output_wish == wish


@pytest.mark.parametrize("nothing", [0, 0.5])
def test_a_wish_for_no_output_is_refused_because_upstream_takes_it_for_no_limit(nothing):
    with pytest.raises(BadRequest, match="at least one token"):
        chat(options={"num_predict": nothing})


def test_a_cap_below_one_is_never_sent():
    with pytest.raises(ValueError, match="no limit"):
        chat().upstream_body("tiny", 0)


@pytest.mark.parametrize("forever", [0, 0.0, "0", "0s", "0h0m", "-0s"])
def test_nobody_unloads_a_model_that_others_share(forever):
    for unload in (
        lambda: chat(messages=[], keep_alive=forever),
        lambda: generate(prompt="", keep_alive=forever),
        lambda: embed(input=[], keep_alive=forever),
    ):
        with pytest.raises(BadRequest, match="cannot be unloaded"):
            unload()


def test_a_zero_keep_alive_on_a_call_with_a_prompt_is_only_dropped():
    assert "keep_alive" not in sent(chat(keep_alive=0))


@pytest.mark.parametrize(
    "call", [chat(messages=[]), chat(messages=None), generate(prompt=""), generate(prompt=None)]
)
def test_a_call_without_a_prompt_loads_the_model_and_gets_one_object(call):
    assert not call.stream
    assert "keep_alive" not in sent(call)


def test_every_byte_of_a_prompt_counts():
    call = chat(
        messages=[
            {"role": "user", "content": "häß", "thinking": "xyz"},
            {"role": "tool", "content": "", "tool_name": "f", "tool_call_id": "c1"},
        ]
    )

    assert call.input_bytes == len("userhäßxyz".encode()) + len("toolfc1")
    assert call.messages == 2


def test_tools_and_schemas_count_as_the_longest_way_to_write_them():
    plain = chat().input_bytes
    schema = {"type": "object", "properties": {"a<b>": {"description": "ä&"}}}
    tools = [{"type": "function", "function": {"name": "f", "parameters": schema}}]
    go = json.dumps(schema).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")

    assert chat(format=schema).input_bytes == plain + len(go)
    assert chat(tools=tools).input_bytes > plain + len(go)


def test_tool_calls_are_counted_and_sent():
    calls = [{"id": "c", "function": {"index": 0, "name": "f", "arguments": {"Type": 1, "type": 2}}}]

    call = chat(messages=[{"role": "assistant", "content": "", "tool_calls": calls}])

    assert sent(call)["messages"][0]["tool_calls"] == calls
    assert call.input_bytes == len("assistant") + len(json.dumps(calls)) + TOOL_MARKS


@pytest.mark.parametrize("number", ["1e20", "1E20", "1.5e+20", "1e-6"])
def test_a_number_that_go_writes_in_full_counts_all_its_digits(number):
    arguments = '{"a":[' + ",".join([number] * 50) + "]}"
    body = '{"model":"tiny","messages":[{"role":"assistant","tool_calls":[{"function":{"arguments":%s}}]}]}'
    written = ", ".join([f"{float(number):.6f}".rstrip("0").rstrip(".")] * 50)

    assert ollama.parse_chat((body % arguments).encode()).input_bytes > len(written)
    assert chat(format=json.loads(arguments)).input_bytes > len(written)


def test_tools_without_a_word_in_them_count_the_marks_around_them():
    tools: list[dict[str, object]] = [{}] * 1024
    as_go_writes = '{"type":"","function":{"name":"","parameters":{"type":"","properties":null}}}'

    # Marks are words of the vocabulary or nearly so: a token stands for at least two bytes of them.
    assert chat(tools=tools).input_bytes - chat().input_bytes > 1024 * len(as_go_writes) // 2


def test_a_picture_counts_a_constant_and_a_sound_its_length():
    assert chat(messages=[{"role": "user", "images": [PNG]}]).input_bytes == len("user") + IMAGE_TOKENS
    assert generate(images=[PNG, PNG]).images == 2
    assert chat(messages=[{"role": "user", "images": [MP3]}]).input_bytes > 600_000 // 40


@pytest.mark.parametrize(
    "images",
    [[PNG] * (MAX_IMAGES + 1), ["data:image/png;base64," + PNG], ["http://example.org/"], [1], ["a" * 2**25]],
)
def test_too_many_or_unreadable_pictures_are_refused(images):
    with pytest.raises(BadRequest):
        chat(messages=[{"role": "user", "images": images}])
    with pytest.raises(BadRequest):
        generate(images=images)


def test_everything_that_replaces_or_surrounds_the_prompt_counts():
    call = generate(prompt="pp", suffix="ss", system="sys", context=[1, 2, 3])

    assert call.input_bytes == 2 + 2 + 3 + 3
    assert call.context_ids == 3
    assert call.input_estimate(DEFAULT) == 2 + 3
    assert call.text_bytes is None


@pytest.mark.parametrize(
    "template",
    [
        "",
        "{{ .Prompt }}",
        "{{- if .System }}<s>{{ .System }}</s>{{ end }}{{ if .Prompt }}{{ .Prompt }}{{ else }}-{{ end -}}",
        "<PRE> {{ .Prompt }} <SUF>{{ .Suffix }}",
    ],
)
def test_a_template_that_writes_each_part_once_is_sent(template):
    assert sent(generate(template=template))["template"] == template


@pytest.mark.parametrize(
    "template",
    [
        "{{ .Prompt }}{{ .Prompt }}",
        '{{ printf "%1000000d" 1 }}',
        "{{ range .Messages }}{{ .Content }}{{ end }}",
        "{{ with .Prompt }}{{ . }}{{ end }}",
        "{{ $x := .Prompt }}{{ $x }}",
        "{{/* */}}",
        '{{ .Prompt | printf "%s%s" }}',
        "{{ block .Prompt }}",
        "{{ .Prompt",
        "{{ .System {{ .Prompt }}",
        "{{" * 500_000,
    ],
)
def test_a_template_that_could_grow_the_prompt_is_refused(template):
    with pytest.raises(BadRequest) as refused:
        generate(template=template)

    assert refused.value.param == "template"


@pytest.mark.parametrize("name", ["seed", "top_k", "num_predict"])
@pytest.mark.parametrize("number", [1e300, -1e300, 2.0**63])
def test_an_option_that_no_integer_of_64_bits_can_hold_is_refused(name, number):
    with pytest.raises(BadRequest) as refused:
        chat(options={name: number})

    assert refused.value.param == f"options.{name}"


@pytest.mark.parametrize("context", [["1"], [1.5], [True], {"a": 1}, "12"])
def test_a_context_holds_ids_and_nothing_else(context):
    with pytest.raises(BadRequest):
        generate(context=context)


def test_embeddings_have_no_cap_and_no_stream():
    call = embed(input=["ab", "c"], truncate=False, stream=True, dimensions=8, options={"num_predict": 5})

    assert sent(call) == {
        "model": "tiny:latest",
        "input": ["ab", "c"],
        "truncate": False,
        "dimensions": 8,
        "options": {},
    }
    assert call.input_bytes >= 3
    assert call.output_wish is None


@pytest.mark.parametrize("value", [[1, 2], [["a"]], 5, {"a": 1}, ["x"] * (ollama.MAX_INPUTS + 1), [None]])
def test_only_texts_and_not_too_many_are_embedded(value):
    with pytest.raises(BadRequest) as refused:
        embed(input=value)

    assert (refused.value.param or "").startswith("input")


def test_the_old_embeddings_route_asks_the_new_one_because_only_that_counts():
    call = ollama.parse_embeddings(b'{"model":"emb","prompt":"hi"}')

    assert EMBEDDINGS.upstream_path == "/api/embed"
    assert sent(call) == {"model": "tiny:latest", "input": "hi"}


@pytest.mark.parametrize(
    ("answer", "reshaped"),
    [
        (b'{"model":"e","embeddings":[[0.1,-2.0]],"prompt_eval_count":2}', {"embedding": [0.1, -2.0]}),
        (b'{"model":"e","embeddings":[]}', {"embedding": []}),
    ],
)
def test_its_answer_is_given_the_old_shape(answer, reshaped):
    assert EMBEDDINGS.reshape is single_embedding
    assert json.loads(single_embedding(answer)) == reshaped


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (b'{"model":"a"}', "a"),
        (b'{"name":"b"}', "b"),
        (b'{"model":"","name":"b"}', "b"),
        (b'{"model":"a","name":"b","verbose":true}', "a"),
    ],
)
def test_show_takes_either_name(body, name):
    assert ollama.parse_show(body) == name


@pytest.mark.parametrize("body", [b'{"Name":"a"}', b'{"name":"a","MODEL":"b"}', b'{"name":1}', b"{}"])
def test_show_refuses_what_go_would_read_otherwise(body):
    with pytest.raises(BadRequest):
        ollama.parse_show(body)


SHOWN = {
    "license": "LICENCE TEXT",
    "modelfile": "FROM /root/.ollama/models/blobs/sha256-1",
    "parameters": 'stop "x"\ntemperature 0.5',
    "template": "{{ .System }} SECRET",
    "system": "SECRET",
    "messages": [{"role": "system", "content": "SECRET"}],
    "tensors": [{"name": "t"}],
    "projector_info": {"x": "SECRET"},
    "remote_host": "https://SECRET",
    "remote_model": "SECRET",
    "requires": "0.1",
    "details": {"parent_model": "/root/SECRET", "format": "gguf", "family": "llama", "families": ["llama"]},
    "model_info": {
        "llama.context_length": 4096,
        "general.name": "Tiny",
        "general.size_label": None,
        "general.license": "LICENCE TEXT " * 100,
        "quantize.imatrix.file": "/home/SECRET/imatrix.dat",
        "tokenizer.chat_template": "SECRET",
        "tokenizer.ggml.tokens": ["a"] * 10,
        "general.languages": ["en"],
    },
    "capabilities": ["completion"],
    "modified_at": "2026-01-02T03:04:05Z",
}


def test_show_tells_sizes_and_nothing_that_somebody_wrote():
    shown = ollama.redact_show(SHOWN)

    assert shown == {
        "details": {"parent_model": "", "format": "gguf", "family": "llama", "families": ["llama"]},
        "model_info": {"llama.context_length": 4096, "general.name": "Tiny"},
        "capabilities": ["completion"],
        "parameters": SHOWN["parameters"],
        "modified_at": "2026-01-02T03:04:05Z",
    }


@pytest.mark.parametrize(
    "shown", [{}, {"model_info": None}, {"model_info": [], "details": "x", "capabilities": 1}]
)
def test_model_info_is_always_an_object(shown):
    assert ollama.redact_show(shown)["model_info"] == {}


def test_entries_of_listings_keep_what_clients_insist_on():
    entry = {
        "name": "tiny:latest",
        "model": "tiny:latest",
        "modified_at": "2026-01-02T03:04:05Z",
        "size": 1,
        "digest": "0" * 64,
        "details": {"parent_model": "SECRET", "family": "llama"},
        "remote_host": "SECRET",
        "expires_at": "2026-01-02T03:04:05Z",
        "size_vram": 2,
    }

    listed, loaded = ollama.redact_entry(entry), ollama.redact_loaded(entry)

    assert listed.keys() == {"name", "model", "modified_at", "size", "digest", "details"}
    assert loaded.keys() == {"name", "model", "size", "digest", "details", "expires_at", "size_vram"}
    assert listed["details"] == loaded["details"] == {"parent_model": "", "family": "llama"}


_KNOWN = {*ollama._CHAT, *ollama._GENERATE, *ollama._EMBED, *ollama._OPTIONS}
_bodies = hostile.bodies(_KNOWN).map(lambda body: {"model": "tiny", **body})


@given(_bodies, st.sampled_from([ollama.parse_chat, ollama.parse_generate]), st.integers(1, 10**6))
@settings(max_examples=300)
def test_whatever_is_asked_is_refused_or_sent_with_a_cap_and_known_fields_only(body, parse, cap):
    try:
        call = parse(json.dumps(body).encode())
    except BadRequest:
        return

    upstream = sent(call, "tiny:latest", cap)
    assert upstream["options"]["num_predict"] == cap
    assert upstream["model"] == "tiny:latest"
    assert upstream.keys() <= {*ollama._CHAT, *ollama._GENERATE} - {
        "keep_alive",
        "shift",
        "_debug_render_only",
    }
    assert upstream["options"].keys() <= ollama._OPTIONS.keys() - hostile.LOAD_OPTIONS.keys()
    assert call.output_wish is None or call.output_wish > 0

    again = parse(call.upstream_body("tiny:latest", cap))
    assert sent(again, "tiny:latest", cap) == upstream
    assert again.input_bytes == call.input_bytes


_MEMBERS = st.lists(
    st.one_of(
        st.tuples(
            st.sampled_from(["model", "Model", "mode\\u006c"]), st.sampled_from(["tiny", "big", "", None, 1])
        ),
        st.tuples(
            st.sampled_from(["messages", "Messages", "me\u017fsages"]),
            st.sampled_from(
                [[{"role": "user", "content": "a"}], [{"role": "user", "Content": "b"}], None, []]
            ),
        ),
        st.tuples(
            st.sampled_from(["stream", "\u017ftream", "STREAM"]), st.sampled_from([True, False, None, "no"])
        ),
        st.tuples(st.sampled_from(["x", "X"]), st.just(1)),
    ),
    max_size=5,
)


@given(_MEMBERS)
@settings(max_examples=500)
def test_what_is_read_here_is_read_as_the_same_by_go(members):
    body = "{" + ",".join(f'"{name}":{json.dumps(value)}' for name, value in members) + "}"
    try:
        call = ollama.parse_chat(body.encode())
    except BadRequest:
        return

    by_go = go_json.read(native._CHAT, body.encode())
    assert call.model == by_go["model"]
    assert call.fields.get("messages", []) == (by_go.get("messages") or [])
    streams = by_go.get("stream") is not False
    assert call.stream is (streams and bool(call.fields.get("messages")))
