"""How the row of a key is deleted while gateways use the key."""

from __future__ import annotations

from django.db import transaction

from keys.models import ApiKey, KeySecret


def delete_key(key: ApiKey) -> None:
    """Delete it with all that hangs on it.

    Gateways note when its secrets were last used. Who is just doing so is waited for, and
    who begins to finds them gone; else such a note would refer to a secret that is none.
    """
    with transaction.atomic():
        list(KeySecret.objects.select_for_update().filter(key=key))
        ApiKey.objects.get(pk=key.pk).delete()
