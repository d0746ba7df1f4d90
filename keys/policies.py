"""What a policy may say about the options of a call, and what platform, tenant and key say together.

Shared with others is what a model is loaded with and how long it stays loaded:
a call that chooses these chooses them for everybody, so clients may choose them
only where a policy lets them. Everything else they may use unless a policy says
no. The table for people is in ``docs/policies.md``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Option:
    """What holds for an option whatever a policy says.

    ``allowed``: whether clients may set it where no policy speaks of it.
    ``lowest`` and ``highest`` bound what is ever sent of a number, and are None
    for what is none. ``left_to_ollama_below``: a smaller number than the lowest
    asks for Ollama's own choice, as no number does.
    """

    allowed: bool
    lowest: int | None = None
    highest: int | None = None
    left_to_ollama_below: bool = False


# What a model is loaded with: another value than the running one loads it again, for everybody.
LOAD_OPTIONS: dict[str, Option] = {
    "num_ctx": Option(allowed=False, lowest=256, highest=2**20),
    "num_batch": Option(allowed=False, lowest=1, highest=65_536),
    "num_gpu": Option(allowed=False, lowest=0, highest=1024, left_to_ollama_below=True),
    "main_gpu": Option(allowed=False, lowest=0, highest=63, left_to_ollama_below=True),
    "num_thread": Option(allowed=False, lowest=1, highest=1024, left_to_ollama_below=True),
    "draft_num_predict": Option(allowed=False, lowest=0, highest=256),
    "use_mmap": Option(allowed=False, lowest=0, highest=1),
}
FEATURES = ("raw", "template", "system", "suffix", "context", "images", "tools", "think")
OPTIONS: dict[str, Option] = {
    **LOAD_OPTIONS,
    # In seconds. Below a minute it would unload a model that others use, beyond a week nobody means it.
    "keep_alive": Option(allowed=False, lowest=60, highest=7 * 86400),
    "num_predict": Option(allowed=True, lowest=1, highest=2**31 - 1),
    **dict.fromkeys(FEATURES, Option(allowed=True)),
}
# With each of these a caller could write a system text of its own, so they go where ``system`` goes.
WRITES_SYSTEM = ("raw", "template", "suffix", "context")


@dataclass(frozen=True, slots=True)
class Rule:
    """What holds for one option: whether clients may set it, its bounds, what is sent if they do not.

    A minimum is never above the maximum, nor the default outside of both. All
    three are None for an option that is no number; a default of None leaves the
    option to Ollama.
    """

    allowed: bool
    minimum: int | None
    maximum: int | None
    default: int | None


Policy = dict[str, Rule]

UNSAID: Policy = {
    name: Rule(option.allowed, option.lowest, option.highest, None) for name, option in OPTIONS.items()
}


class Said(Protocol):
    """What one of platform, tenant and key says about an option; None: nothing."""

    @property
    def option(self) -> str: ...
    @property
    def allowed(self) -> bool | None: ...
    @property
    def minimum(self) -> int | None: ...
    @property
    def maximum(self) -> int | None: ...
    @property
    def default_value(self) -> int | None: ...


def together(said: Iterable[Said]) -> Policy:
    """The policy made of what platform, tenant and key say, in this order: the options that are spoken of.

    Of permissions and bounds the stricter wins; a maximum goes before a
    minimum. A default is no bound, so the nearest one counts, within the bounds.
    """
    policy: Policy = {}
    by_option: dict[str, list[Said]] = {}
    for one in said:
        by_option.setdefault(one.option, []).append(one)
    for name, sayings in by_option.items():
        policy[name] = _rule(OPTIONS[name], sayings)
    if "system" in policy and not policy["system"].allowed:
        policy |= dict.fromkeys(WRITES_SYSTEM, Rule(False, None, None, None))
    return policy


def _rule(option: Option, sayings: list[Said]) -> Rule:
    permissions = [one.allowed for one in sayings if one.allowed is not None]
    allowed = all(permissions) if permissions else option.allowed
    if option.lowest is None or option.highest is None:
        return Rule(allowed, None, None, None)
    maximum = min([option.highest, *(one.maximum for one in sayings if one.maximum is not None)])
    minimum = max([option.lowest, *(one.minimum for one in sayings if one.minimum is not None)])
    minimum = min(minimum, maximum)
    defaults = [one.default_value for one in sayings if one.default_value is not None]
    return Rule(allowed, minimum, maximum, max(minimum, min(defaults[-1], maximum)) if defaults else None)


def rule_of(policy: Mapping[str, Rule], option: str) -> Rule:
    """What holds for ``option``, spoken of or not."""
    return policy.get(option) or UNSAID[option]
