"""The format of secrets: pure functions, no database."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keys import secrets

PUBLIC_ID, SECRET = secrets.mint()
ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def test_a_minted_secret_has_the_written_format():
    assert re.fullmatch(r"tg_[0-9A-Za-z]{12}[0-9A-Za-z]{40}[0-9A-Za-z]{6}", SECRET)
    assert SECRET[3:15] == PUBLIC_ID
    assert secrets.public_id_of(SECRET) == PUBLIC_ID


def test_the_checksum_is_the_crc32_of_all_before_it_in_six_base_62_digits():
    body = "tg_" + "0" * 52

    found = [last for last in _checksums_of(body) if secrets.public_id_of(body + last)]

    assert found == [_base_62(_crc32(body))]


def _checksums_of(body: str) -> list[str]:
    right = _base_62(_crc32(body))
    return [right, right[::-1], "000000", "zzzzzz", right[1:] + right[0]]


def _crc32(text: str) -> int:
    """CRC32 bit by bit, as its definition goes."""
    remainder = 0xFFFFFFFF
    for byte in text.encode():
        remainder ^= byte
        for _ in range(8):
            remainder = remainder >> 1 ^ (0xEDB88320 if remainder & 1 else 0)
    return remainder ^ 0xFFFFFFFF


def _base_62(number: int) -> str:
    return "".join(ALPHABET[number // 62**place % 62] for place in range(5, -1, -1))


def test_two_minted_secrets_differ():
    assert len({secrets.mint() for _ in range(1000)}) == 1000


@given(st.integers(3, len(SECRET) - 1), st.sampled_from(ALPHABET))
def test_a_secret_with_one_character_mistyped_is_told_apart(place, character):
    mistyped = SECRET[:place] + character + SECRET[place + 1 :]

    assert (secrets.public_id_of(mistyped) is not None) == (mistyped == SECRET)


@given(st.text())
def test_no_text_upsets_the_reading_of_a_secret(text):
    assert secrets.public_id_of(text) is None


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param("tg_", id="prefix alone"),
        pytest.param(SECRET + "\n", id="line break behind"),
        pytest.param(" " + SECRET, id="space in front"),
        pytest.param(SECRET[:-1], id="one too short"),
        pytest.param(SECRET + "0", id="one too long"),
        pytest.param("TG_" + SECRET[3:], id="prefix in capitals"),
        pytest.param("sk-" + SECRET[3:], id="prefix of another service"),
        pytest.param(SECRET[:20] + "\u0663" + SECRET[21:], id="a digit that is not ASCII"),
        pytest.param(SECRET[:20] + "\uff41" + SECRET[21:], id="a letter that is not ASCII"),
        pytest.param(SECRET[:20] + "\0" + SECRET[21:], id="a zero byte"),
        pytest.param(SECRET[:20] + "\udc80" + SECRET[21:], id="half a surrogate pair"),
        pytest.param(SECRET + "," + SECRET, id="twice, joined by a comma"),
        pytest.param("tg_' OR pg_sleep(5)--" + "0" * 40, id="SQL"),
    ],
)
def test_what_is_no_secret_has_no_public_id(text):
    assert secrets.public_id_of(text) is None


def test_the_digest_depends_on_every_character_and_on_the_pepper(settings):
    settings.KEY_PEPPER = "one"
    digest = secrets.digest(SECRET)
    assert re.fullmatch(r"[0-9a-f]{64}", digest)
    assert secrets.digest(SECRET) == digest
    assert secrets.digest(SECRET[:-1] + ("0" if SECRET[-1] != "0" else "1")) != digest

    settings.KEY_PEPPER = "another"
    assert secrets.digest(SECRET) != digest
