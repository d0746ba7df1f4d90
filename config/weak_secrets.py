"""Secrets that protect too little: short, of few characters, an example's, a trial's, or one used twice."""

from __future__ import annotations

from collections.abc import Iterator

from django.conf import settings

from config.trial_secrets import is_trial_secret

# Enough for 190 random bits, however they are written.
LEAST = {"SECRET_KEY": 50, "KEY_PEPPER": 32}
# It may be left out, and opens figures only.
LEAST_OF_METRICS_TOKEN = 20
FEWEST_DIFFERENT = 10
# How generators and examples mark what is not meant to be kept.
EXAMPLES = ("django-insecure-", "changeme", "change-me", "example", "secret", "insecure")


def weaknesses(*, on_trial: bool = False) -> Iterator[str]:
    """What is wrong with the secrets of this process, a sentence each; nothing if they are good.

    Those that a quickstart made are good ``on_trial`` only.
    """
    for name, least in LEAST.items():
        value: str = getattr(settings, name)
        if len(value) < least:
            yield f"{name} has {len(value)} characters and needs {least}."
        elif len(set(value)) < FEWEST_DIFFERENT:
            yield f"{name} is made of {len(set(value))} different characters; take a random one."
        elif value.lower().startswith(EXAMPLES):
            yield f"{name} is an example's; take a random one."
        elif is_trial_secret(value) and not on_trial:
            yield f"{name} was made by a quickstart, for a trial on one machine; set one of your own."
    if 0 < len(settings.METRICS_TOKEN) < LEAST_OF_METRICS_TOKEN:
        yield f"METRICS_TOKEN has fewer than {LEAST_OF_METRICS_TOKEN} characters; leave it out, or take more."
    if settings.SECRET_KEY == settings.KEY_PEPPER:
        yield "SECRET_KEY and KEY_PEPPER are the same: who learns one has both."
