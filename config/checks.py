"""What ``manage.py check --deploy`` finds wrong with an installation."""

from __future__ import annotations

from typing import Any

from django.core.checks import CheckMessage, Error, Tags, register

from config.weak_secrets import weaknesses


@register(Tags.security, deploy=True)
def secrets_protect(**_: Any) -> list[CheckMessage]:
    """The reasons for which ``serve`` would not start, for installations that another server runs."""
    return [Error(told, id="config.E001") for told in weaknesses()]
