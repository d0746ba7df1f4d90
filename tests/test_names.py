"""Many spellings, one model."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.exceptions import BadRequest, CloudModelRefused
from proxy.names import canonical
from proxy.simulator import names as upstream_names
from tests import hostile


@pytest.mark.parametrize("name", hostile.SPELLINGS)
def test_every_spelling_of_a_model_has_one_canonical_form(name):
    assert canonical(name) == "tiny:latest"


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("ns/Tiny", "ns/tiny:latest"),
        ("NS/tiny:7B-q4_K_M", "ns/tiny:7b-q4_k_m"),
        ("hf.co/Some/Model-GGUF:Q4_0", "hf.co/some/model-gguf:q4_0"),
        ("localhost:5000/ns/tiny:x", "localhost:5000/ns/tiny:x"),
        ("https://host.example/library/tiny", "host.example/library/tiny:latest"),
        ("tiny-cloud", "tiny-cloud:latest"),
        ("cloud", "cloud:latest"),
        ("localhost:5000/ns/tiny-cloud", "localhost:5000/ns/tiny-cloud:latest"),
        ("a.b/library/tiny:local", "a.b/library/tiny:latest"),
        ("t" * 80, "t" * 80 + ":latest"),
    ],
)
def test_the_canonical_form_is_what_a_listing_shows_in_lower_case(name, form):
    assert canonical(name) == form


@pytest.mark.parametrize("name", hostile.CLOUD_NAMES)
def test_names_that_lead_to_the_cloud_are_refused(name):
    with pytest.raises(CloudModelRefused):
        canonical(name)


@pytest.mark.parametrize("name", hostile.INVALID_NAMES)
def test_names_that_ollama_does_not_read_are_bad_requests(name):
    with pytest.raises(BadRequest):
        canonical(name)


_parts = st.text(alphabet="aZ0_-.", min_size=1, max_size=4) | st.sampled_from(
    [
        "tiny",
        "library",
        "latest",
        "registry.ollama.ai",
        "local",
        "Cloud",
        "x-cloud",
        "h:1",
        "x:",
        "\u017f",
        "\x1c",
        " ",
    ]
)
_names = st.lists(
    st.tuples(_parts, st.sampled_from(["", ":", "/", "://", " ", ":/"])), min_size=1, max_size=5
).map(lambda parts: "".join(part + between for part, between in parts))


@given(_names)
@settings(max_examples=500)
def test_a_name_is_never_read_otherwise_than_upstream_reads_it(name):
    try:
        form = canonical(name)
    except (BadRequest, CloudModelRefused):
        return

    read_upstream = upstream_names.parse(name)
    assert not read_upstream.cloud
    assert form == read_upstream.short.lower()


@given(_names)
@settings(max_examples=500)
def test_whatever_upstream_reads_as_a_local_model_is_read_here_as_the_same(name):
    try:
        read_upstream = upstream_names.parse(name)
    except upstream_names.BadName:
        return
    # Upstream takes anything for a scheme and drops it; here it has to look like one.
    scheme, found, _ = name.strip(upstream_names.GO_SPACE).partition("://")
    if read_upstream.cloud or (found and not re.fullmatch("[A-Za-z0-9+.-]+", scheme)):
        return

    assert canonical(name) == read_upstream.short.lower()


@given(_names)
def test_a_canonical_form_stays_as_it_is(name):
    try:
        form = canonical(name)
    except (BadRequest, CloudModelRefused):
        return

    assert canonical(form) == form
