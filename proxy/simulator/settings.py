"""What a test may set while the simulator runs."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

CLOUD_ANSWERS = ("answer", "unauthorized", "disabled")


class BadSetting(ValueError):
    """No such setting, or a value it cannot have."""


@dataclass(slots=True)
class Settings:
    """Durations are seconds; ``pieces`` of ``None`` is the natural length.

    ``num_ctx`` is the context size used when a request names none, ``cloud``
    says how cloud names are answered.
    """

    piece_delay: float = 0.0
    first_byte_delay: float = 0.0
    load_delay: float = 0.0
    pieces: int | None = None
    num_ctx: int = 4096
    cloud: str = CLOUD_ANSWERS[0]

    def change(self, values: Mapping[str, Any]) -> None:
        """Set what ``values`` names; raise ``BadSetting`` and change nothing if anything is wrong."""
        for name, value in values.items():
            if not _fits(name, value):
                raise BadSetting(f"not a setting: {name}={value!r}")
        for name, value in values.items():
            setattr(self, name, value)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def _fits(name: str, value: Any) -> bool:
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    match name:
        case "piece_delay" | "first_byte_delay" | "load_delay":
            return whole or (isinstance(value, float) and value >= 0)
        case "pieces":
            return whole or value is None
        case "num_ctx":
            return whole and value > 0
        case "cloud":
            return value in CLOUD_ANSWERS
    return False
