"""Names that people give: one line that says the same wherever it is shown."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING, Any

from django.core.exceptions import ValidationError
from django.db import models
from django.utils.translation import gettext_lazy as _

if TYPE_CHECKING:
    Text = models.CharField[str, str]
else:  # the parameters are in the stubs only
    Text = models.CharField

# A terminal obeys control characters; the others begin a line, or turn around what stands beside them.
_CATEGORIES = {"Cc", "Zl", "Zp"}
_DIRECTIONS = {chr(code) for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))}


def acts(character: str) -> bool:
    """Whether a character does something to its surroundings instead of being shown."""
    return unicodedata.category(character) in _CATEGORIES or character in _DIRECTIONS


def refuse_acting(name: str) -> None:
    """Raises ``ValidationError`` for a name that has such a character."""
    if any(map(acts, name)):
        raise ValidationError(_("A name has no control characters and no line breaks."))


def for_terminal(text: str) -> str:
    """Somebody's text with what a terminal would obey as escapes; its lines and tabs stay."""
    return "".join(
        one.encode("unicode_escape").decode() if acts(one) and one not in "\n\t" else one for one in text
    )


class NameField(Text):
    """A name; to the database, and so to migrations, text like any other."""

    default_validators = [refuse_acting]

    def deconstruct(self) -> tuple[str, str, list[Any], dict[str, Any]]:
        name, _path, arguments, options = super().deconstruct()
        return name, "django.db.models.CharField", list(arguments), dict(options)
