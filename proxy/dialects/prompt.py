"""How large the prompt can become that is made of a request.

A token stands for at least one byte of text, so bytes bound tokens. What is not
text as it stands has a bound of its own, given here with its reason.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from typing import Any

from proxy.dialects.strict_json import wrong
from proxy.exceptions import BadRequest

# The vision models that Ollama runs make at most 64 times 64 tokens of a picture, and marks for its rows.
IMAGE_TOKENS = 4608
# Audio models make at most 25 tokens of a second, and the thinnest MP3 has 1,000 bytes to a second.
AUDIO_BYTES_PER_TOKEN = 40
# What an embedding model puts around each text.
EMBEDDING_MARKS = 4
# What a model's own way of writing tools puts around a tool, and around each object in its definition.
TOOL_MARKS = 32
OBJECT_MARKS = 16
# Go writes a number with an exponent in full up to 21 digits.
EXPONENT_DIGITS = 21

MAX_IMAGES = 64
MAX_IMAGE_CHARACTERS = 16 * 2**20

# Not within an escape such as ``\u5e73``.
_EXPONENT = re.compile(r"(?<!\\u)(?<!\\u[0-9a-f])(?<!\\u[0-9a-f]{2})\d[eE][-+]?\d")
_PICTURE = re.compile(rb"\xff\xd8\xff|\x89PNG\r\n|GIF8|BM|RIFF....WEBP", re.DOTALL)


class Prompt:
    """Adds up what goes into a prompt while a request is read."""

    __slots__ = ("bytes", "context_ids", "images", "media_bytes", "messages")

    def __init__(self) -> None:
        self.bytes = 0
        self.messages = 0
        self.images = 0
        self.media_bytes = 0
        self.context_ids = 0

    def text(self, value: str) -> None:
        """Text that goes into the prompt as it stands."""
        self.bytes += len(value) if value.isascii() else len(value.encode())

    def structure(self, value: Any) -> None:
        """What a template writes as JSON: a schema, the definition of a tool, the arguments of a call.

        A template may put spaces after commas and colons and escape what is not
        ASCII, and Go writes ``<``, ``>`` and ``&`` with six bytes and ``1e20``
        with all its zeros.
        """
        self._written(json.dumps(value))

    def tools(self, definitions: list[Any]) -> None:
        """Definitions of tools, which may be small and still are put between marks by a model's renderer."""
        written = json.dumps(definitions)
        self._written(written)
        self.bytes += TOOL_MARKS * len(definitions) + OBJECT_MARKS * written.count("{")

    def calls(self, calls: list[Any]) -> None:
        """Calls of tools as a message repeats them, each between marks like a definition."""
        self._written(json.dumps(calls))
        self.bytes += TOOL_MARKS * len(calls)

    def _written(self, text: str) -> None:
        self.bytes += len(text)
        self.bytes += 5 * (text.count("<") + text.count(">") + text.count("&"))
        self.bytes += EXPONENT_DIGITS * len(_EXPONENT.findall(text))

    def ids(self, count: int) -> None:
        """Ids of tokens, each of which is one."""
        self.context_ids += count
        self.bytes += count

    def media(self, encoded: str, param: str) -> None:
        """A picture or a sound in base64; refuses too many, and one that is too large or not base64."""
        self.images += 1
        if self.images > MAX_IMAGES:
            raise BadRequest(f"There are more than {MAX_IMAGES} images.", param)
        if len(encoded) > MAX_IMAGE_CHARACTERS:
            raise BadRequest(f"{param} has more than {MAX_IMAGE_CHARACTERS} characters.", param)
        try:
            head = base64.b64decode(encoded[:24], validate=True)
        except (binascii.Error, ValueError):
            raise wrong(param, "an image in base64, without data: before it") from None
        size = 0 if _PICTURE.match(head) else len(encoded) * 3 // 4
        bound = max(IMAGE_TOKENS, size // AUDIO_BYTES_PER_TOKEN)
        self.media_bytes += bound
        self.bytes += bound
