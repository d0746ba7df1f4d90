"""Names that people give: one line that says the same wherever it is shown."""

from __future__ import annotations

import unicodedata

from django.core.exceptions import ValidationError
from django.db import models
from django.utils.translation import gettext_lazy as _

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


def name_field(*, max_length: int, help_text: str) -> models.CharField[str, str]:
    """A column for a name. To the database, and so to migrations, it is text like any other."""
    field = models.CharField(max_length=max_length, help_text=help_text)
    # As Django does with the longest length: what is given to the constructor is part of migrations.
    field.validators.append(refuse_acting)
    return field
