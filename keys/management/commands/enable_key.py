from typing import Any

from keys import services
from keys.commands import SwitchCommand
from keys.effects import Effect
from keys.models import ApiKey


class Command(SwitchCommand):
    help = "Accept a key again that was disabled. Doing so twice is no error."
    changed = "Enabled key"
    unchanged = "It was not disabled, or is revoked: key"
    answer = "enabled_now"

    def switch(self, *, key: ApiKey, actor: str, reason: str) -> bool:
        return services.enable_key(key=key, actor=actor, reason=reason)

    def told(self, effect: Effect) -> str:
        return "In force on every process."

    def described(self, key: ApiKey) -> dict[str, Any]:
        return {"disabled_at": key.disabled_at and key.disabled_at.isoformat()}
