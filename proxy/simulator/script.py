"""Faults that a test scripts while the simulator runs."""

from dataclasses import asdict, dataclass
from typing import Any

from proxy.simulator import faults, names
from proxy.simulator.faults import NO_FAULT, Fault


@dataclass(slots=True)
class Rule:
    """Faults for the requests that fit: by ``model`` (canonical), text in the body, and path.

    ``None`` fits everything, but a request that runs no model only meets rules
    that name its path. ``times`` is how many requests are still to be hit.
    """

    words: str
    model: str | None = None
    marker: str | None = None
    path: str | None = None
    times: int | None = None

    def fits(self, path: str, model: names.Name | None, body: str) -> bool:
        return (
            (self.times is None or self.times > 0)
            and (self.path == path or (self.path is None and model is not None))
            and (self.model is None or (model is not None and self.model == model.key))
            and (self.marker is None or self.marker in body)
        )


class Script:
    """The rules in force, in the order they were given; later ones add to earlier ones."""

    def __init__(self) -> None:
        self._rules: list[Rule] = []

    def add(
        self,
        words: str,
        *,
        model: str | None = None,
        marker: str | None = None,
        path: str | None = None,
        times: int | None = None,
    ) -> None:
        """Add a rule; raise ``BadFault`` or ``BadName``."""
        faults.parse(str(words))
        self._rules.append(Rule(words, names.parse(model).key if model else None, marker, path, times))

    def rules(self) -> list[dict[str, Any]]:
        return [asdict(rule) for rule in self._rules]

    def clear(self) -> None:
        self._rules.clear()

    def pick(self, path: str, model: names.Name | None, body: str) -> tuple[Fault, str]:
        """The faults for one request and their words; uses up one time of each rule that fits."""
        fault, words = NO_FAULT, []
        if model is not None and (own := faults.of_model(model.model)):
            fault, words = own, [model.model.lower().removeprefix("fault-")]
        for rule in self._rules:
            if rule.fits(path, model, body):
                if rule.times is not None:
                    rule.times -= 1
                fault = faults.parse(rule.words, fault)
                words.append(rule.words)
        return fault, ".".join(words)
