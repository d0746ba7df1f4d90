"""Secrets that protect nothing: too short, made of few characters, an example's, or one used twice."""

from __future__ import annotations

from collections.abc import Iterator

from django.conf import settings

# Enough for 190 random bits, however they are written.
LEAST = {"SECRET_KEY": 50, "KEY_PEPPER": 32}
# It may be left out, and opens figures only.
LEAST_OF_METRICS_TOKEN = 20
FEWEST_DIFFERENT = 10
# How generators and examples mark what is not meant to be kept.
EXAMPLES = ("django-insecure-", "changeme", "change-me", "example", "secret", "insecure")


def weaknesses() -> Iterator[str]:
    """What is wrong with the secrets of this process, a sentence each; nothing if they are good."""
    for name, least in LEAST.items():
        value: str = getattr(settings, name)
        if len(value) < least:
            yield f"{name} has {len(value)} characters and needs {least}."
        elif len(set(value)) < FEWEST_DIFFERENT:
            yield f"{name} is made of {len(set(value))} different characters; take a random one."
        elif value.lower().startswith(EXAMPLES):
            yield f"{name} is an example's; take a random one."
    if 0 < len(settings.METRICS_TOKEN) < LEAST_OF_METRICS_TOKEN:
        yield f"METRICS_TOKEN has fewer than {LEAST_OF_METRICS_TOKEN} characters; leave it out, or take more."
    if settings.SECRET_KEY == settings.KEY_PEPPER:
        yield "SECRET_KEY and KEY_PEPPER are the same: who learns one has both."
