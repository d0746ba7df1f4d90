"""What a call says and is answered, gathered for the prompt log.

Only calls of keys that opted in have a transcript; of all others nothing is
looked at. While a call runs the text of its answer is put aside, up to a bound.
What is left of it for keeping is worked out when it has ended, in a thread.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

import orjson

from audit.prompts import Said
from audit.redaction import redacted
from audit.sealing import can_seal
from budgets.reservations import Reservation
from proxy.calls import Call
from proxy.metering import texts_in
from tenants.quick_settings import settings

# A secret that begins before the bound is known as one only if its end is seen too.
MARGIN = 4096
CUT = "[cut]"
NUMBER_CHARACTERS = 8
_DATA = re.compile(r"data:[\w/+.-]{1,100};base64,|[A-Za-z0-9+/_-]{256}")


def transcript_of(call: Call, reservation: Reservation) -> Transcript | None:
    """A transcript for a call of a key that opted in; None for every other."""
    if reservation.caller.prompt_log_days is None or not can_seal():
        return None
    return Transcript(call, reservation)


class Transcript:
    """One call. ``size`` is about how many characters it keeps in memory."""

    __slots__ = ("_answer", "_call", "_cut", "_left", "_reservation", "ended_at")

    def __init__(self, call: Call, reservation: Reservation) -> None:
        self._call = call
        self._reservation = reservation
        self._answer: list[str] = []
        self._left: int = settings.PROMPT_LOG_MAX_CHARACTERS + MARGIN
        self._cut = False
        self.ended_at = datetime.now(UTC)

    @property
    def size(self) -> int:
        return self._call.input_bytes + sum(map(len, self._answer))

    def add_frames(self, passed: list[bytes]) -> None:
        """Take the text out of frames that the client gets. Never raises."""
        for frame in passed:
            for line in frame.split(b"\n"):
                part = line[5:] if line.startswith(b"data:") else line
                if self._left > 0 and part.lstrip().startswith(b"{"):
                    self.add_json(part)

    def add_json(self, part: bytes) -> None:
        """Take the text out of one frame. Never raises."""
        try:
            parsed = orjson.loads(part)
        except orjson.JSONDecodeError:
            return
        kind = parsed.get("type")
        # The events at the end of /v1/responses say again what those before them said.
        if not (isinstance(kind, str) and kind.startswith("response.") and not kind.endswith(".delta")):
            self.add(parsed)

    def add(self, answer: dict[str, Any]) -> None:
        """Take the text out of an answer or a part of one. Never raises."""
        try:
            for text in texts_in(answer):
                self._answer.append(text[: self._left])
                self._cut = self._cut or len(text) > self._left
                self._left -= len(text)
                if self._left <= 0:
                    return
        except RecursionError:  # an upstream that nests its answer a thousand deep
            self._cut = True

    def said(self) -> Said:
        """What is kept of the call: redacted, and no longer than is allowed."""
        caller, demand = self._reservation.caller, self._reservation.demand
        days = caller.prompt_log_days or 0
        limit: int = settings.PROMPT_LOG_MAX_CHARACTERS
        prompt = _Shortening(caller.redactions, limit)
        written = orjson.dumps(prompt.of(self._call.fields), option=orjson.OPT_INDENT_2).decode()
        answer = _Shortening(caller.redactions, limit)
        answered = answer.of("".join(self._answer))
        return Said(
            request_id=demand.request_id,
            tenant_id=caller.tenant_id,
            tenant=caller.tenant,
            key_id=caller.key_id,
            key=caller.key,
            member_id=caller.member_id,
            asked_at=datetime.fromtimestamp(self._reservation.admitted_at_ms / 1000, UTC),
            at=self.ended_at,
            days=min(days, settings.PROMPT_LOG_MAX_DAYS),
            prompt=written,
            answer=answered,
            cut=self._cut or prompt.cut or answer.cut,
        )


class _Shortening:
    """Goes through what a client sent until as much as is allowed has been taken over."""

    def __init__(self, templates: tuple[str, ...], limit: int) -> None:
        self._templates = templates
        self._left = limit
        self.cut = False

    def of(self, value: Any) -> Any:
        """``value`` redacted, with marks where something is left out."""
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, dict):
            taken: dict[str, Any] = {}
            for name, item in value.items():
                if self._is_full():
                    taken[CUT] = len(value) - len(taken)
                    break
                taken[self._text(name)] = self.of(item)
            return taken
        if isinstance(value, list):
            items: list[Any] = []
            for item in value:
                if self._is_full():
                    items.append(CUT)
                    break
                items.append(self.of(item))
            return items
        self._left -= NUMBER_CHARACTERS
        return value

    def _is_full(self) -> bool:
        full = self._left <= 0
        self.cut = self.cut or full
        return full

    def _text(self, text: str) -> str:
        if _DATA.match(text):
            self._left -= NUMBER_CHARACTERS
            return f"[{len(text)} characters of data]"
        taken = redacted(text[: self._left + MARGIN], self._templates)
        whole = len(text) <= self._left + MARGIN and len(taken) <= self._left
        kept = taken if whole else taken[: max(0, self._left)] + CUT
        self.cut = self.cut or not whole
        self._left -= len(kept)
        return kept
