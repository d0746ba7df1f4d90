"""Asking a service whether a human was there.

A page shows the widget of the service; who solves it gets a token, which comes
here in ``X-Tollgate-Human-Check``. A token is good once. It is only looked at
when a check is demanded, so nobody with a key ever waits for it. Whatever keeps
the service from saying yes is a no.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import httpx

from budgets.reservations import Standing
from budgets.visitors import UNTIL_CHECK, digest
from proxy.exceptions import HumanCheckFailed, HumanCheckUnavailable
from tenants.quick_settings import settings
from tenants.redis import PARTITION, RedisError, redis_async

logger = logging.getLogger(__name__)

HEADER = "x-tollgate-human-check"
MAX_TOKEN_CHARACTERS = 4096
# No service vouches for a token that is older.
REMEMBERED_SECONDS = 3600
LEAST_SCORE = 0.5


class Verifier(Protocol):
    """Who can tell whether a token stands for a human."""

    async def vouches(self, token: str) -> bool:
        """Whether it does. Raises ``HumanCheckUnavailable`` if that cannot be found out."""


def _says_no_more(answer: dict[str, Any]) -> bool:
    return True


def _is_likely_human(answer: dict[str, Any]) -> bool:
    """reCAPTCHA v3 says success to robots too, and how sure it is; v2 gives no score."""
    score = answer.get("score", 1.0)
    return isinstance(score, int | float) and score >= LEAST_SCORE


@dataclass(frozen=True, slots=True)
class SiteVerify:
    """A service with the question and the answer that all of them have.

    ``POST`` of the form fields ``secret`` and ``response``; the answer is JSON,
    ``{"success": true, "error-codes": […], …}``. ``agrees`` looks at what it
    says besides. Of the visitor nothing is told but the token.
    """

    url: str
    agrees: Callable[[dict[str, Any]], bool] = _says_no_more

    async def vouches(self, token: str) -> bool:
        form = {"secret": settings.HUMAN_CHECK_SECRET, "response": token}
        try:
            # Reading all certificates of the system would hold up the running streams.
            certificates = await asyncio.to_thread(_certificates)
            async with httpx.AsyncClient(verify=certificates, trust_env=False) as client:
                answer = (await client.post(self.url, data=form)).json()
        except (httpx.HTTPError, ValueError) as exc:
            raise HumanCheckUnavailable from exc
        if not isinstance(answer, dict) or not isinstance(answer.get("success"), bool):
            raise HumanCheckUnavailable
        codes = answer.get("error-codes") or []
        if any("secret" in str(code) for code in codes):
            logger.error("the service for human checks does not know our secret: %s", codes)
            raise HumanCheckUnavailable
        return answer["success"] and self.agrees(answer)


@cache
def _certificates() -> ssl.SSLContext:
    return ssl.create_default_context()


# Where each service is asked, and what else it has to say.
SERVICES: dict[str, SiteVerify] = {
    "turnstile": SiteVerify("https://challenges.cloudflare.com/turnstile/v0/siteverify"),
    "hcaptcha": SiteVerify("https://api.hcaptcha.com/siteverify"),
    "recaptcha": SiteVerify("https://www.google.com/recaptcha/api/siteverify", _is_likely_human),
}


def verifier() -> Verifier | None:
    """The service that is set up; None if none is, and then nobody passes."""
    service = SERVICES.get(settings.HUMAN_CHECK_SERVICE)
    if service is None or not settings.HUMAN_CHECK_SECRET:
        return None
    return SiteVerify(settings.HUMAN_CHECK_URL or service.url, service.agrees)


def offer(standings: Iterable[Standing]) -> dict[str, Any]:
    """Whether the next call of a visitor has to bring a check, and what a page needs to show one."""
    return {
        "demanded": any(one.name == UNTIL_CHECK and one.remaining <= 0 for one in standings),
        "service": settings.HUMAN_CHECK_SERVICE or None,
        "site_key": settings.HUMAN_CHECK_SITE_KEY or None,
    }


async def pass_check(token: str) -> None:
    """Return if ``token`` stands for a human, and stood for nobody before.

    Raises ``HumanCheckFailed`` and, within ``HUMAN_CHECK_SECONDS``,
    ``HumanCheckUnavailable``; after that one the same token may be tried again.
    """
    asked = verifier()
    if asked is None:
        raise HumanCheckUnavailable
    if not 0 < len(token) <= MAX_TOKEN_CHARACTERS:
        raise HumanCheckFailed
    redis = redis_async()
    mark = f"{PARTITION}:human-check:{digest('human check', token.encode()).hex()}"
    try:
        # Before the service is asked: of two who bring it at once one is let through.
        if not await redis.call("SET", mark, 1, "NX", "EX", REMEMBERED_SECONDS):
            raise HumanCheckFailed
        try:
            async with asyncio.timeout(settings.HUMAN_CHECK_SECONDS):
                passed = await asked.vouches(token)
        except (TimeoutError, HumanCheckUnavailable) as exc:
            logger.warning("the service for human checks does not answer: %r", exc.__cause__ or exc)
            await redis.call("DEL", mark)
            raise HumanCheckUnavailable from exc
    except RedisError as exc:
        raise HumanCheckUnavailable from exc
    if not passed:
        raise HumanCheckFailed
