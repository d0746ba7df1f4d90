"""Names of models as clients write them: what cannot be is their mistake."""

from __future__ import annotations

from functools import lru_cache

from proxy.exceptions import BadRequest, CloudModelRefused
from tenants import model_names


# Clients write a few names over and over; a refusal is not remembered.
@lru_cache(maxsize=4096)
def canonical(name: str) -> str:
    """``tenants.model_names.canonical``; raises ``CloudModelRefused`` and ``BadRequest``."""
    try:
        return model_names.canonical(name)
    except model_names.CloudModelName as exc:
        raise CloudModelRefused(name) from exc
    except model_names.NoModelName as exc:
        raise BadRequest(str(exc), "model") from exc
