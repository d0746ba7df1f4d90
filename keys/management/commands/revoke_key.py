from typing import Any

from keys import services
from keys.commands import SwitchCommand
from keys.effects import Effect
from keys.models import ApiKey


class Command(SwitchCommand):
    help = "Revoke a key for good. Doing so twice is no error."
    changed = "Revoked key"
    unchanged = "It was revoked before: key"
    answer = "revoked_now"

    def switch(self, *, key: ApiKey, actor: str, reason: str) -> bool:
        return services.revoke_key(key=key, actor=actor, reason=reason)

    def told(self, effect: Effect) -> str:
        return f"In force: no process admits another call with it. Running calls that end: {effect.running}."

    def described(self, key: ApiKey) -> dict[str, Any]:
        return {"revoked_at": key.revoked_at and key.revoked_at.isoformat()}
