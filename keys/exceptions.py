from tenants.exceptions import Refusal

# The reason of an ``InvalidKey`` that is its tenant's.
SUSPENDED = "tenant suspended"
# That of one whose secret has given way to a newer one of its key.
SUCCEEDED = "succeeded"


class InvalidKey(Refusal):
    """The secret opens nothing.

    One refusal for a secret that is missing, malformed, unknown or wrong and
    for a key that is revoked, expired or of a suspended tenant: the caller
    learns nothing from it. ``reason`` is for the log.
    """

    def __init__(self, reason: str) -> None:
        super().__init__("invalid key")
        self.reason = reason


class KeysUnavailable(Refusal):
    """Nobody can say just now whether the key is good. ``retry_after``: seconds."""

    def __init__(self, retry_after: float) -> None:
        super().__init__("keys cannot be looked up")
        self.retry_after = retry_after
