"""How people sign in: what of django-allauth's own ways is different here."""

from __future__ import annotations

import base64
import hashlib
import logging
import smtplib
import time
from http import HTTPStatus
from typing import Any

from allauth.account.adapter import DefaultAccountAdapter
from allauth.account.authentication import get_authentication_records
from allauth.core import context as here
from allauth.core.exceptions import ImmediateHttpResponse
from allauth.mfa.adapter import DefaultMFAAdapter
from allauth.socialaccount.adapter import DefaultSocialAccountAdapter
from cryptography.fernet import Fernet
from django.conf import settings
from django.http import HttpRequest
from django.shortcuts import render

from proxy.addresses import client_of

logger = logging.getLogger(__name__)

JUST_NOW_SECONDS = 300


class Accounts(DefaultAccountAdapter):
    """Nobody signs up; operators and owners add people."""

    def is_open_for_signup(self, request: HttpRequest) -> bool:
        return False

    def get_client_ip(self, request: HttpRequest) -> str:
        """Whom throttles count: the client as far as trusted proxies tell it."""
        return str(client_of(request.headers, request.META))

    def send_mail(self, template_prefix: str, email: str, context: dict[str, Any]) -> None:
        """Send what somebody asked for; where that is not possible they are told, known here or not.

        Raises ``ImmediateHttpResponse``, which answers the request.
        """
        try:
            if not settings.EMAIL_URL:
                raise ConnectionRefusedError("EMAIL_URL is not set")
            super().send_mail(template_prefix, email, context)
        except (OSError, smtplib.SMTPException) as exc:
            logger.error("%s could not be mailed: %s", template_prefix, type(exc).__name__)
            answer = render(here.request, "account/no_mail.html", status=HTTPStatus.SERVICE_UNAVAILABLE)
            raise ImmediateHttpResponse(answer) from exc

    def is_reauthentication_required(self, *, app: str, **kwargs: Any) -> bool:
        """Whether the password is asked for again: not of somebody who has only just signed in with it."""
        request = here.request
        records = get_authentication_records(request, request.user)
        newest = max((record["at"] for record in records), default=0)
        return time.time() - newest > JUST_NOW_SECONDS


class Outside(DefaultSocialAccountAdapter):
    """Whoever is known elsewhere has to be known here too, by the address that was verified there."""

    def is_open_for_signup(self, request: HttpRequest, sociallogin: Any) -> bool:
        return False


class SecondFactors(DefaultMFAAdapter):
    """Secrets of authenticators lie in the database encrypted, under a key that does not."""

    def encrypt(self, text: str) -> str:
        return _cipher().encrypt(text.encode()).decode()

    def decrypt(self, encrypted_text: str) -> str:
        return _cipher().decrypt(encrypted_text.encode()).decode()

    def get_totp_issuer(self) -> str:
        return "Tollgate"


def _cipher() -> Fernet:
    key = hashlib.blake2b(settings.KEY_PEPPER.encode()[:64], digest_size=32, person=b"second factors")
    return Fernet(base64.urlsafe_b64encode(key.digest()))
