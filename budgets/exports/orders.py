"""What somebody wants exported: which entries, as which rows, in which kind of file."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from datetime import date
from typing import Any
from uuid import UUID

from django.core.exceptions import ValidationError
from django.utils.translation import gettext as _

from budgets.exports.profiles import PROFILES, Profile
from budgets.exports.queries import bounds_of
from budgets.usage import Selection

LAYOUTS = ("csv", "spreadsheet", "xlsx")
# By the word with which people choose one.
SEPARATORS = {"comma": ",", "semicolon": ";", "tab": "\t"}
# Ten years; the begin of each day is worked out one by one.
MOST_DAYS = 3660


@dataclass(frozen=True, slots=True)
class Order:
    """One export. The same order over the same ledger gives the same bytes.

    The selection has both its days, ``[from_day, before_day)``. Layout ``csv``
    is for machines: commas, decimal points, no byte order mark. ``spreadsheet``
    is CSV with a mark, the ``separator`` (a word of ``SEPARATORS``) and decimal
    points or commas. ``xlsx`` is a workbook. Raises ``ValidationError`` for what
    cannot be made.
    """

    selection: Selection
    profile_name: str
    layout: str = "csv"
    separator: str = "comma"
    decimal_comma: bool = False
    gzip: bool = False

    def __post_init__(self) -> None:
        for trouble in self._troubles():
            raise ValidationError(trouble)

    def _troubles(self) -> list[str]:
        from_day, before_day = bounds_of(self.selection)
        troubles = []
        if not from_day < before_day:
            troubles.append(
                _("The range is empty: %(before)s is not after %(from)s.")
                % {"before": before_day, "from": from_day}
            )
        elif (before_day - from_day).days > MOST_DAYS:
            troubles.append(
                _("The range is longer than %(days)s days; take several shorter ones.") % {"days": MOST_DAYS}
            )
        for word, known in (
            (self.profile_name, PROFILES),
            (self.layout, LAYOUTS),
            (self.separator, SEPARATORS),
        ):
            if word not in known:
                troubles.append(f"{word!r} is none of {', '.join(known)}.")
        if self.layout != "spreadsheet" and (self.separator != "comma" or self.decimal_comma):
            troubles.append(_("Separator and decimal comma are for the spreadsheet layout."))
        if self.layout == "xlsx" and self.gzip:
            troubles.append("A workbook is compressed already.")
        return troubles

    @property
    def profile(self) -> Profile:
        return PROFILES[self.profile_name]

    @property
    def from_day(self) -> date:
        return bounds_of(self.selection)[0]

    @property
    def before_day(self) -> date:
        return bounds_of(self.selection)[1]

    @property
    def extension(self) -> str:
        return ("xlsx" if self.layout == "xlsx" else "csv") + (".gz" if self.gzip else "")

    @property
    def content_type(self) -> str:
        if self.gzip:
            return "application/gzip"
        if self.layout == "xlsx":
            return "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"
        return "text/csv; charset=utf-8"

    def file_name(self, whose: str) -> str:
        """A name that says what is in the file; ``whose``: a tenant's slug, or ``all-tenants``."""
        return f"{whose}-{self.profile_name}-{self.from_day}-before-{self.before_day}.{self.extension}"

    def as_json(self) -> dict[str, Any]:
        """For a column of JSON; ``from_json`` reads it back."""
        chosen = {name: value for name, value in asdict(self.selection).items() if value is not None}
        return {field.name: getattr(self, field.name) for field in fields(self)} | {
            "selection": {
                name: str(value) if isinstance(value, date | UUID) else value
                for name, value in chosen.items()
            }
        }

    @classmethod
    def from_json(cls, written: dict[str, Any]) -> Order:
        """The order that ``as_json`` wrote."""
        chosen = dict(written["selection"])
        for name in chosen:
            if name in ("from_day", "before_day"):
                chosen[name] = date.fromisoformat(chosen[name])
            elif name.endswith("_id"):
                chosen[name] = UUID(chosen[name])
        return cls(**written | {"selection": Selection(**chosen)})
