from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.exceptions import UpstreamFailed
from proxy.framing import Frames

LINES = '{"a":"ä\u2028b"}\n{"done":true}\r\n{"c":"\U0001f600\u0085"}\n'.encode()
EVENTS = "data: ä\u2028\n\nevent: x\r\ndata: 1\r\n\r\ndata: [DONE]\n\n".encode()


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted({place % (len(data) + 1) for place in places}), len(data)]
    return [data[a:b] for a, b in pairwise(edges)]


def frames_of(end: bytes, packets: list[bytes]) -> list[bytes]:
    frames = Frames(end, limit=1000)
    return [frame for packet in packets for frame in frames.feed(packet)]


@given(st.lists(st.integers(0, 200)))
def test_lines_are_the_same_however_the_network_cuts_them(places):
    assert frames_of(b"\n", cut(LINES, places)) == [
        '{"a":"ä\u2028b"}\n'.encode(),
        b'{"done":true}\r\n',
        '{"c":"\U0001f600\u0085"}\n'.encode(),
    ]


@given(st.lists(st.integers(0, 200)))
def test_events_are_the_same_however_the_network_cuts_them(places):
    assert frames_of(b"\n\n", cut(EVENTS, places)) == [
        "data: ä\u2028\n\n".encode(),
        b"event: x\r\ndata: 1\r\n\r\n",
        b"data: [DONE]\n\n",
    ]


@pytest.mark.parametrize("end", [b"\n", b"\n\n"])
def test_one_byte_per_packet_gives_whole_frames_only(end):
    data = LINES if end == b"\n" else EVENTS

    assert b"".join(frames_of(end, [bytes([byte]) for byte in data])) == data


def test_a_frame_without_an_end_is_kept_back_as_the_rest():
    frames = Frames(b"\n", limit=1000)

    assert frames.feed(b'{"a":1}\n{"half') == [b'{"a":1}\n']
    assert frames.rest == b'{"half'


@pytest.mark.parametrize(
    "packets", [[b"x" * 11], [b"x" * 6, b"x" * 6], [b"x" * 11 + b"\n"], [b"a\n" + b"x" * 12 + b"\n"]]
)
def test_a_frame_beyond_the_limit_ends_the_stream(packets):
    frames = Frames(b"\n", limit=10)
    *fitting, one_too_many = packets
    for packet in fitting:
        frames.feed(packet)

    with pytest.raises(UpstreamFailed):
        frames.feed(one_too_many)


def test_many_frames_in_one_packet_come_out_one_by_one():
    assert frames_of(b"\n\n", [b"data: 1\n\ndata: 2\n\n" * 500]) == [b"data: 1\n\n", b"data: 2\n\n"] * 500
