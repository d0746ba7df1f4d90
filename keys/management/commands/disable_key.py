from typing import Any

from keys import services
from keys.commands import SwitchCommand
from keys.effects import Effect
from keys.models import ApiKey


class Command(SwitchCommand):
    help = "Refuse a key until enable_key. Doing so twice is no error."
    changed = "Disabled key"
    unchanged = "It was disabled or revoked before: key"
    answer = "disabled_now"

    def switch(self, *, key: ApiKey, actor: str, reason: str) -> bool:
        return services.disable_key(key=key, actor=actor, reason=reason)

    def told(self, effect: Effect) -> str:
        return f"In force: no process admits a call with it. Running calls that end: {effect.running}."

    def described(self, key: ApiKey) -> dict[str, Any]:
        return {"disabled_at": key.disabled_at and key.disabled_at.isoformat()}
