"""What the gateway itself says no to, and what it says when upstream fails.

Status, code and sentence of each are in ``proxy.errors.ANSWERS``.
"""

from budgets.exceptions import CallStopped
from keys.networks import Address
from tenants.exceptions import Refusal


class BadRequest(Refusal):
    """The request itself is wrong. ``param`` names the field, as the client would write it."""

    def __init__(self, sentence: str, param: str | None = None) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.param = param


class OptionRefused(BadRequest):
    """The policy of the caller does not let it use a field that the request has."""

    def __init__(self, param: str) -> None:
        super().__init__(f"This key may not use {param!r}. Ask the operator to allow it.", param)


class EndpointRefused(Refusal):
    """The key is limited to endpoints of which this is none."""


class AddressRefused(BadRequest):
    """The key is limited to networks, and the request does not come from one of them."""

    def __init__(self, address: Address) -> None:
        super().__init__(f"This key may not be used from {address}.")


class BodyTooLarge(Refusal):
    """The body has more than ``MAX_BODY_BYTES`` bytes."""


class UnsupportedMedia(Refusal):
    """The body is compressed; what cannot be read cannot be checked or counted."""


class SecretInUrl(Refusal):
    """The address carries a secret, where logs and browsers keep it."""


class RouteRefused(Refusal):
    """There is no such door, whether or not Ollama has one there."""


class ModelRefused(Refusal):
    """The caller may not use the model, or it does not exist; nobody is told which.

    ``name`` is what the caller wrote.
    """

    def __init__(self, name: str = "") -> None:
        super().__init__(name)
        self.name = name


class CloudModelRefused(ModelRefused):
    """The name would send the prompt to the vendor's cloud, on the operator's account."""


class NoModels(Refusal):
    """It is not known which models are installed, or none is."""


class UpstreamUnreachable(Refusal):
    """No connection to Ollama came about; nothing was sent."""


class UpstreamTimeout(Refusal):
    """Ollama took longer than one of the time limits allows."""


class UpstreamFailed(Refusal):
    """Ollama's answer was no answer, or broke off. The reason is for the log only."""


class UpstreamRefused(Refusal):
    """Ollama answered with an error: its ``status`` and the ``text`` of its error."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(status, text)
        self.status = status
        self.text = text


class OutputCapPassed(Refusal):
    """Ollama went on beyond the number of tokens that it was told."""


class GpuTimeOver(CallStopped):
    """A budget has no more GPU time, or money for it, for the running call."""


class Draining(Refusal):
    """This process is about to stop and takes no new calls."""


class HumanCheckFailed(Refusal):
    """The service does not vouch for the token, or it was used before."""


class HumanCheckUnavailable(Refusal):
    """The service that knows whether a human was there does not say, or none is set up."""
