"""What a policy leaves of the options of a call: clamped, left out or refused.

Clients that ask for what they always ask for, such as Zed for a model that
stays loaded for ever, are served with less and told so by a header. Refused is
what would give another answer than was asked for if it were left out.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from keys.policies import LOAD_OPTIONS, OPTIONS, Policy, Rule, rule_of
from proxy.calls import (
    CHAT,
    EMBED,
    EMBEDDINGS,
    GENERATE,
    V1_CHAT,
    V1_MESSAGES,
    V1_RESPONSES,
    Call,
    Route,
)
from proxy.exceptions import OptionRefused

# Those whose fields ``options`` and ``keep_alive`` Ollama reads; elsewhere it ignores them.
_READS_OPTIONS = (CHAT, GENERATE, EMBED, EMBEDDINGS)
# Who may speak where nobody may write a system text. Any other role could be read as one.
_ROLES = ("user", "assistant", "tool")
# How a model is told not to think, and the fields that could tell it otherwise. /v1/completions has none.
_NO_THINKING: dict[Route, tuple[dict[str, Any], tuple[str, ...]]] = {
    CHAT: ({"think": False}, ("think",)),
    GENERATE: ({"think": False}, ("think",)),
    V1_CHAT: ({"reasoning_effort": "none"}, ("reasoning_effort", "reasoning")),
    V1_RESPONSES: ({"reasoning": {"effort": "none"}}, ("reasoning",)),
    V1_MESSAGES: ({"thinking": {"type": "disabled"}}, ("thinking", "output_config")),
}


def under(policy: Policy, call: Call) -> Call:
    """The call as ``policy`` lets it go upstream; raises ``OptionRefused``.

    The one that was given stays as it is, so that another policy may be asked.
    """
    if not policy and not call.asked:
        return call
    _refuse(policy, call)
    allowed = dataclasses.replace(call, fields=dict(call.fields), clamped={})
    if not rule_of(policy, "context").allowed and allowed.fields.pop("context", None):
        allowed.clamped["context"] = None
        allowed.input_bytes -= call.context_ids
        allowed.context_ids = 0
    if not rule_of(policy, "think").allowed:
        _stop_thinking(allowed)
    _limit_output(policy, allowed)
    if call.route in _READS_OPTIONS:
        _set_options(policy, allowed)
    return allowed


def described(clamped: Mapping[str, int | bool | None]) -> str:
    """What was changed, as a header tells it: ``num_ctx=8192, context=dropped``."""
    words = {None: "dropped", True: "true", False: "false"}
    return ", ".join(
        f"{name}={words[value] if value is None or isinstance(value, bool) else value}"
        for name, value in clamped.items()
    )


def _refuse(policy: Policy, call: Call) -> None:
    """Refuse a call with something that the policy forbids and that cannot be left out."""
    fields = call.fields
    for name in ("raw", "template", "suffix", "tools"):
        if fields.get(name) and not rule_of(policy, name).allowed:
            raise OptionRefused(name)
    if call.images and not rule_of(policy, "images").allowed:
        raise OptionRefused("images")
    if not rule_of(policy, "system").allowed:
        if fields.get("system"):
            raise OptionRefused("system")
        if fields.get("instructions"):
            raise OptionRefused("instructions")
        for name in ("messages", "input"):
            _refuse_roles(fields.get(name), name)


def _refuse_roles(messages: Any, param: str) -> None:
    """Refuse a message by anybody but those who take part in the conversation."""
    for index, message in enumerate(messages if isinstance(messages, list) else ()):
        if not isinstance(message, dict) or message.get("type", "message") != "message":
            continue
        if str(message.get("role", "")).lower() not in _ROLES:
            raise OptionRefused(f"{param}[{index}].role")


def _stop_thinking(call: Call) -> None:
    off, names = _NO_THINKING.get(call.route, ({}, ()))
    given = {name: call.fields.pop(name) for name in names if name in call.fields}
    call.fields |= off
    if given and any(given[name] != off.get(name) for name in given):
        call.clamped["think"] = False


def _limit_output(policy: Policy, call: Call) -> None:
    """Apply default and maximum of ``num_predict``, under whatever name the client asked for it."""
    rule = policy.get("num_predict")
    if rule is None or rule.maximum is None or call.route.operation == "embedding":
        return
    wish = rule.default if call.output_wish is None else call.output_wish
    limit = rule.maximum if wish is None else min(wish, rule.maximum)
    if call.output_wish is not None and limit != call.output_wish:
        call.clamped["num_predict"] = limit
    call.output_wish = limit


def _set_options(policy: Policy, call: Call) -> None:
    """Send of the loaded model's options what the policy says, or what it leaves of what was asked."""
    options = dict(call.fields.get("options", {}))
    for name in ("keep_alive", *LOAD_OPTIONS):
        if name not in policy and name not in call.asked:
            continue
        asked = call.asked.get(name)
        sent = _choice(name, rule_of(policy, name), asked)
        value = bool(sent) if name == "use_mmap" and sent is not None else sent
        if asked is not None and sent != asked:
            call.clamped[name] = value
        if value is None:
            continue
        if name == "keep_alive":
            call.fields["keep_alive"] = value
        else:
            options[name] = value
    if options:
        call.fields["options"] = options
    call.num_ctx = options.get("num_ctx")


def _choice(name: str, rule: Rule, asked: float | None) -> int | None:
    """What is sent of an option that is a number; None leaves it to Ollama."""
    option = OPTIONS[name]
    if asked is None or not rule.allowed:
        return rule.default
    if option.left_to_ollama_below and option.lowest is not None and asked < option.lowest:
        return rule.default
    if rule.minimum is None or rule.maximum is None:
        raise TypeError(f"{name} is no number")
    bounded = max(rule.minimum, min(asked, rule.maximum))
    return math.ceil(bounded)
