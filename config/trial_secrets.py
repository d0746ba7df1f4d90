"""Secrets that a quickstart or a test run made for itself, and how to tell them.

They are as random as any, but lie in a file beside the data that they protect. Standard library only: a
quickstart makes them before there is a Django.
"""

from __future__ import annotations

import contextlib
import ipaddress
import secrets

MARK = "trial-"


def make_trial_secret() -> str:
    return MARK + secrets.token_urlsafe(48)


def is_trial_secret(secret: str) -> bool:
    """Whether ``secret`` was made for a trial; data directories made before there was a mark have others."""
    return secret.startswith(MARK)


def is_loopback(host: str) -> bool:
    """Whether what listens at ``host`` is out of reach for all other machines."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"
