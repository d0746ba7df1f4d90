"""Why a call was refused and what can be done, in people's words, by the code that its client was given.

Each code belongs to one of the questions that are asked of a call, in the order
of ``Asked``. A test holds the codes against those of the gateway.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _


class Asked(IntEnum):
    """The questions, in their order; the last one is put to the model server, once a call is admitted."""

    KEY = 1
    REQUEST = 2
    PERMIT = 3
    STOPPED = 4
    MODEL = 5
    OPTIONS = 6
    MODEL_STOPPED = 7
    COUNTABLE = 8
    ROOM = 9
    ANSWER = 10


QUESTIONS: dict[Asked, Promise] = {
    Asked.KEY: _("Is the key good?"),
    Asked.REQUEST: _("Is the request well formed?"),
    Asked.PERMIT: _("May the key be used for this address, and from there?"),
    Asked.STOPPED: _("Has an operator stopped these calls?"),
    Asked.MODEL: _("May this key use the model?"),
    Asked.OPTIONS: _("May it use these options?"),
    Asked.MODEL_STOPPED: _("Has an operator stopped the model or its server?"),
    Asked.COUNTABLE: _("Can the call be counted?"),
    Asked.ROOM: _("Is there room in every limit?"),
    Asked.ANSWER: _("Did the model server answer to the end?"),
}


@dataclass(frozen=True, slots=True)
class Reason:
    """What a code means: the question that got the no, what was found, and what to do."""

    asked: Asked
    found: Promise
    advice: Promise


_STOPPED = _("An operator has switched calls off with a kill switch.")
_WAIT_FOR_OPERATOR = _("Nothing in your program has to be changed. Wait until the operator lifts the switch.")
_BLIND = _("The gateway could not count usage at that moment, and then it starts nothing.")
_TRY_AGAIN = _("Send the request again. If this goes on, tell the operator.")

REASONS: dict[str, Reason] = {
    "invalid_api_key": Reason(
        Asked.KEY,
        _("The key was not valid any more."),
        _("Look at the key's page. If it has expired or was revoked, make a new one and replace it."),
    ),
    "keys_unavailable": Reason(Asked.KEY, _("Keys could not be checked at that moment."), _TRY_AGAIN),
    "secret_in_url": Reason(
        Asked.KEY,
        _("The address had a key in it, where logs keep it."),
        _("Send the key as a header, and replace this one: somebody may have read it."),
    ),
    "invalid_request": Reason(
        Asked.REQUEST,
        _("The request was not valid."),
        _("Read the sentence in the answer; it says what is wrong. Sending the same again does not help."),
    ),
    "body_too_large": Reason(
        Asked.REQUEST, _("The request was too large."), _("Send less text or fewer pictures.")
    ),
    "unsupported_encoding": Reason(
        Asked.REQUEST,
        _("The request was compressed."),
        _("Switch off the compression of requests in your program."),
    ),
    "route_not_allowed": Reason(
        Asked.REQUEST,
        _("The gateway does not serve this address."),
        _("Use one of the documented addresses."),
    ),
    "draining": Reason(Asked.REQUEST, _("That process of the gateway was about to stop."), _TRY_AGAIN),
    "endpoint_not_allowed": Reason(
        Asked.PERMIT,
        _("The key may not be used for this kind of call."),
        _("Use another key, or ask for one that may be."),
    ),
    "address_not_allowed": Reason(
        Asked.PERMIT,
        _("The key may not be used from the network that the call came from."),
        _("Call from a network that the key names, or ask for yours to be added."),
    ),
    "kill_switch_platform": Reason(Asked.STOPPED, _STOPPED, _WAIT_FOR_OPERATOR),
    "kill_switch_tenant": Reason(Asked.STOPPED, _STOPPED, _WAIT_FOR_OPERATOR),
    "kill_switch_key": Reason(Asked.STOPPED, _STOPPED, _WAIT_FOR_OPERATOR),
    "no_models": Reason(
        Asked.MODEL,
        _("It was not known which models are installed, and then no call is let through."),
        _("Send the request again in a while. If this goes on, tell the operator."),
    ),
    "model_not_allowed": Reason(
        Asked.MODEL,
        _("There is no such model, or this key may not use it. Nobody is told which of the two it is."),
        _("Choose one of the models that the key may call, or ask an owner to allow this one."),
    ),
    "option_not_allowed": Reason(
        Asked.OPTIONS,
        _("The request had a field that this key may not use."),
        _("Leave the field out, or ask the operator to allow it."),
    ),
    "kill_switch_upstream": Reason(
        Asked.MODEL_STOPPED, _STOPPED, _("Use a model that is listed now; those of other servers still work.")
    ),
    "kill_switch_model": Reason(Asked.MODEL_STOPPED, _STOPPED, _("Use another model, or wait.")),
    "too_many_tokens": Reason(
        Asked.COUNTABLE,
        _("The request may have needed more tokens than can be counted."),
        _("Send a shorter prompt, or ask for less output."),
    ),
    "price_missing": Reason(
        Asked.COUNTABLE,
        _("A budget counts money, and this model had no price."),
        _("Ask the operator to set a price, or use another model."),
    ),
    "counters_unavailable": Reason(Asked.COUNTABLE, _BLIND, _TRY_AGAIN),
    "clock_doubtful": Reason(
        Asked.COUNTABLE,
        _("The clocks of the gateway did not agree, so nobody could say which period it was."),
        _TRY_AGAIN,
    ),
    "backlog_full": Reason(Asked.COUNTABLE, _BLIND, _TRY_AGAIN),
    "insufficient_quota": Reason(
        Asked.ROOM,
        _("A budget had not enough left for the most that the request could have used."),
        _("Wait until the budget is whole again, send a smaller request, or ask for more."),
    ),
    "rate_limit_exceeded": Reason(
        Asked.ROOM,
        _("More was asked for within a minute than a limit allows."),
        _(
            "Wait for as long as the answer says; clients of OpenAI and Anthropic do so by themselves. "
            "If it happens often, ask for more."
        ),
    ),
    "concurrency_limit_exceeded": Reason(
        Asked.ROOM,
        _("As many requests were running as may run at one time."),
        _("Wait for one of them to end, send fewer side by side, or ask for more."),
    ),
    "human_check_required": Reason(
        Asked.ROOM,
        _("So many requests had come from a visitor's network that a human had to be seen first."),
        _("Visitors solve the check. Programs should have a key of their own."),
    ),
    "human_check_failed": Reason(
        Asked.ROOM, _("The human check was not passed."), _("Solve a new one: each is good once.")
    ),
    "human_check_unavailable": Reason(
        Asked.ROOM, _("The human check could not be looked at."), _TRY_AGAIN
    ),
    "upstream_refused": Reason(
        Asked.ANSWER,
        _("The model server did not accept the request."),
        _("Read the sentence in the answer: the model may not support what was asked for."),
    ),
    "model_not_found": Reason(
        Asked.ANSWER,
        _("The model had been removed a moment before."),
        _("Read the list of models again and choose another one."),
    ),
    "upstream_unreachable": Reason(Asked.ANSWER, _("The model server could not be reached."), _TRY_AGAIN),
    "upstream_failed": Reason(Asked.ANSWER, _("The model server failed."), _TRY_AGAIN),
    "upstream_busy": Reason(Asked.ANSWER, _("The model server was busy."), _TRY_AGAIN),
    "upstream_timeout": Reason(Asked.ANSWER, _("The model server took too long."), _TRY_AGAIN),
    "output_cap_passed": Reason(
        Asked.ANSWER,
        _("The model went on beyond its limit of tokens and was cut."),
        _("Tell the operator: this model server does not keep to its limits."),
    ),
    "internal_error": Reason(
        Asked.ANSWER, _("The gateway failed."), _("Tell the operator the id of the request.")
    ),
    "gpu_time_over": Reason(
        Asked.ANSWER,
        _("A budget had no more GPU time for the running call, so it was cut."),
        _("Wait until the budget is whole again, or ask for more."),
    ),
    "budget_cut": Reason(
        Asked.ANSWER,
        _("A budget was lowered below what was used and held of it while the call ran."),
        _("Wait until the budget is whole again, or ask for more."),
    ),
    "key_ended": Reason(
        Asked.ANSWER,
        _("The key was revoked or expired while the call ran."),
        _("Look at the key's page, and make a new one if it is still needed."),
    ),
    "tenant_suspended": Reason(
        Asked.ANSWER, _("The tenant was suspended while the call ran."), _("Ask the operator.")
    ),
    "call_stopped": Reason(
        Asked.ANSWER, _("An operator stopped the running call."), _("Ask the operator.")
    ),
    "hold_lost": Reason(
        Asked.ANSWER, _("The gateway lost the room that was set aside for the running call."), _TRY_AGAIN
    ),
}  # fmt: skip

UNKNOWN = Reason(Asked.ANSWER, _("The call was refused."), _TRY_AGAIN)


def reason_of(code: str) -> Reason:
    """What a code means; one of a later release has a meaning that nobody here knows."""
    return REASONS.get(code, UNKNOWN)
