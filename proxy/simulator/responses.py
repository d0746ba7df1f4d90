"""``/v1/responses``: events with a type, a rising number, and no ``[DONE]``."""

import json
import random
import time
from typing import Any

from proxy.simulator import frames, native, openai, prompts
from proxy.simulator.exchange import Dialect, Exchange, answer
from proxy.simulator.generation import Final, Piece, Refused, Wish
from proxy.simulator.go_json import Either, ListOf, Pointer, Struct

_CONTENT = Struct("Content", {"type": str, "text": str, "image_url": str, "file_data": str})
_ITEM = Struct(
    "Input",
    {
        "type": str,
        "role": str,
        "content": Either(ListOf(_CONTENT)),
        "call_id": str,
        "name": str,
        "arguments": str,
        "output": Either(ListOf(_CONTENT)),
        "encrypted_content": str,
    },
)
_TOOL = Struct(
    "Tool",
    {"type": str, "name": str, "description": Pointer(str), "strict": Pointer(bool), "parameters": dict},
)
_REQUEST = Struct(
    "ResponsesRequest",
    {
        "model": str,
        "input": Either(ListOf(_ITEM)),
        "instructions": str,
        "max_output_tokens": Pointer(int),
        "temperature": Pointer(float),
        "top_p": Pointer(float),
        "tools": ListOf(_TOOL),
        "reasoning": Struct("Reasoning", {"effort": str, "summary": str}),
        "text": Pointer(
            Struct(
                "Text", {"format": Pointer(Struct("Format", {"type": str, "name": str, "schema": object}))}
            )
        ),
        "stream": Pointer(bool),
        "truncation": Pointer(str),
        "background": bool,
    },
)


async def create(exchange: Exchange) -> None:
    """POST /v1/responses"""
    fields = openai.read(exchange, _REQUEST)
    spelling = fields.get("model", "")
    if not spelling:
        raise Refused(400, "model is required")
    messages = _messages(fields)
    model = await exchange.model(spelling)
    if "completion" not in model.capabilities:
        raise Refused(400, f'"{spelling}" does not support chat')
    tools = [_tool(tool) for tool in fields.get("tools") or []]
    native.check_tools(model, tools)
    form = ((fields.get("text") or {}).get("format") or {}).get("schema")
    wish = openai.chat_wish(model, spelling, messages, tools, form=form, stream=bool(fields.get("stream")))
    wish.cap = fields.get("max_output_tokens")
    wish.think = openai.thinks(model, (fields.get("reasoning") or {}).get("effort"), spelling)
    await answer(exchange, wish, ResponseEvents(wish, fields))


class ResponseEvents(Dialect):
    """The events of one response: reasoning, then text or calls, then the whole."""

    headers = (("Cache-Control", "no-cache"),)

    def __init__(self, wish: Wish, fields: dict[str, Any]) -> None:
        self.wish = wish
        self._fields = fields
        self._id = f"resp_{random.randrange(999_999)}"  # noqa: S311
        self._created = int(time.time())
        self._number = 0
        self._output: list[dict[str, Any]] = []
        self._thinking = ""
        self._text = ""
        self._open = ""

    def start(self) -> list[bytes]:
        return [
            self._event(kind, response=self._response("in_progress", [], None))
            for kind in ("response.created", "response.in_progress")
        ]

    def piece(self, piece: Piece) -> list[bytes]:
        events = []
        if piece.thinking:
            events += self._think(piece.thinking)
        if piece.calls:
            events += self._call(piece)
        if piece.content:
            events += self._say(piece.content)
        return events

    def final(self, final: Final) -> list[bytes]:
        events = self.piece(Piece(calls=final.calls)) if final.calls else []
        events += self._close()
        response = self._response("completed", self._output, _usage(final))
        return [*events, self._event("response.completed", response=response)]

    def whole(self, answer: Piece, final: Final | None) -> Any:
        output = []
        if answer.thinking:
            output.append(self._reasoning_item(answer.thinking))
        for number, call in enumerate(answer.calls):
            output.append(self._call_item(call, number, "completed"))
        if not answer.calls:
            output.append(self._message_item(answer.content, "completed"))
        return self._response("completed", output, _usage(final))

    def _think(self, text: str) -> list[bytes]:
        events = []
        where = {"item_id": f"rs_{self._id}", "output_index": len(self._output)}
        if self._open != "reasoning":
            self._open = "reasoning"
            item = {"id": where["item_id"], "type": "reasoning", "summary": []}
            events.append(
                self._event("response.output_item.added", output_index=len(self._output), item=item)
            )
        self._thinking += text
        events.append(
            self._event("response.reasoning_summary_text.delta", **where, summary_index=0, delta=text)
        )
        return events

    def _say(self, text: str) -> list[bytes]:
        events = []
        if self._open != "message":
            events += self._close()
            self._open = "message"
            item = {**self._message_item("", "in_progress"), "content": []}
            events.append(
                self._event("response.output_item.added", output_index=len(self._output), item=item)
            )
            part = self._event("response.content_part.added", **self._where(), part=_part(""))
            events.append(part)
        self._text += text
        events.append(self._event("response.output_text.delta", **self._where(), delta=text, logprobs=[]))
        return events

    def _call(self, piece: Piece) -> list[bytes]:
        events = self._close()
        for number, call in enumerate(piece.calls):
            index = len(self._output)
            begun = {**self._call_item(call, number, "in_progress"), "arguments": ""}
            item = self._call_item(call, number, "completed")
            where = {"item_id": item["id"], "output_index": index}
            events += [
                self._event("response.output_item.added", output_index=index, item=begun),
                self._event("response.function_call_arguments.delta", **where, delta=item["arguments"]),
                self._event(
                    "response.function_call_arguments.done",
                    **where,
                    name=item["name"],
                    arguments=item["arguments"],
                ),
                self._event("response.output_item.done", output_index=index, item=item),
            ]
            self._output.append(item)
        return events

    def _close(self) -> list[bytes]:
        """End the item that is open, if one is."""
        events: list[bytes] = []
        item: dict[str, Any] = {}
        index = len(self._output)
        if self._open == "reasoning":
            item = self._reasoning_item(self._thinking)
            where = {"item_id": item["id"], "output_index": index, "summary_index": 0}
            events.append(self._event("response.reasoning_summary_text.done", **where, text=self._thinking))
        elif self._open == "message":
            item = self._message_item(self._text, "completed")
            events.append(
                self._event("response.output_text.done", **self._where(), text=self._text, logprobs=[])
            )
            events.append(self._event("response.content_part.done", **self._where(), part=_part(self._text)))
        if item:
            events.append(self._event("response.output_item.done", output_index=index, item=item))
            self._output.append(item)
        self._open = ""
        return events

    def _where(self) -> dict[str, Any]:
        return {"item_id": f"msg_{self._id}", "output_index": len(self._output), "content_index": 0}

    def _event(self, kind: str, **payload: Any) -> bytes:
        data = frames.encode({**payload, "sequence_number": self._number, "type": kind})
        self._number += 1
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), data)

    def _reasoning_item(self, text: str) -> dict[str, Any]:
        summary = [{"type": "summary_text", "text": text}]
        return {"id": f"rs_{self._id}", "type": "reasoning", "summary": summary, "encrypted_content": text}

    def _message_item(self, text: str, status: str) -> dict[str, Any]:
        top = {"id": f"msg_{self._id}", "type": "message", "status": status, "role": "assistant"}
        return {**top, "content": [_part(text)]}

    def _call_item(self, call: dict[str, Any], number: int, status: str) -> dict[str, Any]:
        return {
            "id": f"fc_{self._id}_{number}",
            "type": "function_call",
            "status": status,
            "call_id": call["id"],
            "name": call["function"]["name"],
            "arguments": json.dumps(call["function"]["arguments"], separators=(",", ":")),
        }

    def _response(
        self, status: str, output: list[dict[str, Any]], usage: dict[str, Any] | None
    ) -> dict[str, Any]:
        fields = self._fields
        done = int(time.time()) if status == "completed" else None
        reasoning = fields.get("reasoning") or None
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "completed_at": done,
            "status": status,
            "incomplete_details": None,
            "model": self.wish.spelling,
            "previous_response_id": None,
            "instructions": fields.get("instructions") or None,
            "output": output,
            "error": None,
            "tools": fields.get("tools") or [],
            "tool_choice": "auto",
            "truncation": fields.get("truncation") or "disabled",
            "parallel_tool_calls": True,
            "text": {"format": ((fields.get("text") or {}).get("format")) or {"type": "text"}},
            "top_p": fields.get("top_p") or 1.0,
            "presence_penalty": 0,
            "frequency_penalty": 0,
            "top_logprobs": 0,
            "temperature": fields.get("temperature") or 1.0,
            "reasoning": reasoning,
            "usage": usage,
            "max_output_tokens": fields.get("max_output_tokens"),
            "max_tool_calls": None,
            "store": False,
            "background": fields.get("background", False),
            "service_tier": "default",
            "metadata": {},
            "safety_identifier": None,
            "prompt_cache_key": None,
        }


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _usage(final: Final | None) -> dict[str, Any]:
    prompt, output = (final.prompt_tokens, final.output_tokens) if final else (0, 0)
    cached = final.cached_tokens if final else None
    return {
        "input_tokens": prompt,
        "output_tokens": output,
        "total_tokens": prompt + output,
        "input_tokens_details": {"cached_tokens": cached or 0},
        "output_tokens_details": {"reasoning_tokens": 0},
    }


def _messages(fields: dict[str, Any]) -> list[prompts.Message]:
    messages = []
    if fields.get("instructions"):
        messages.append(prompts.Message("system", fields["instructions"]))
    given = fields.get("input")
    if isinstance(given, str):
        return [*messages, prompts.Message("user", given)] if given else messages
    thinking = ""
    for number, item in enumerate(given or []):
        kind = item.get("type") or ("message" if item.get("role") else "")
        if kind == "reasoning":
            thinking = item.get("encrypted_content", "")
        elif kind == "message":
            text, images = _read_content(item.get("content"), number)
            messages.append(prompts.Message(item.get("role", ""), text, thinking, images))
            thinking = ""
        elif kind in ("function_call", "web_search_call"):
            call = {"name": item.get("name", ""), "arguments": item.get("arguments", "")}
            messages.append(prompts.Message("assistant", thinking=thinking, calls=[call]))
            thinking = ""
        elif kind == "function_call_output":
            text, images = _read_content(item.get("output"), number)
            messages.append(prompts.Message("tool", text, images=images))
        else:
            raise Refused(400, f'input[{number}]: unknown input item type: "{kind}"')
    return messages


def _read_content(content: Any, number: int) -> tuple[str, int]:
    """The text of an item and its number of images."""
    if content is None or isinstance(content, str):
        return content or "", 0
    kinds = [part.get("type", "") for part in content]
    for place, kind in enumerate(kinds):
        if kind not in ("input_text", "output_text", "input_image", "input_file"):
            raise Refused(400, f"input[{number}]: content[{place}]: unknown content type: {kind}")
    return "".join(part.get("text", "") for part in content), kinds.count("input_image")


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    """A tool in Ollama's own form."""
    if tool.get("type", "").startswith("web_search"):
        tool = {**tool, "name": "web_search"}
    return {
        "type": "function",
        "function": {"name": tool.get("name", ""), "parameters": tool.get("parameters")},
    }
