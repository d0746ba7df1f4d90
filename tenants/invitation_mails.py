"""The mail that an invitation comes in."""

from __future__ import annotations

import logging
import smtplib

from allauth.utils import build_absolute_uri
from django.conf import settings
from django.core.mail import EmailMessage
from django.http import HttpRequest
from django.template.loader import render_to_string
from django.urls import reverse
from django.utils import timezone, translation
from django.utils.translation import gettext as _
from django.views.decorators.debug import sensitive_variables

from tenants.models import Invitation, User

logger = logging.getLogger(__name__)


def link_of(request: HttpRequest, token: str) -> str:
    """The address that whoever is invited opens."""
    link: str = build_absolute_uri(request, reverse("invitation-link", args=[token]))
    return link


@sensitive_variables()
def mail_invitation(invitation: Invitation, link: str) -> bool:
    """Send an invitation, in the language and by the clock of whom it is for; False: it was not sent.

    What they have not chosen is the tenant's; a tenant without a language has that of whoever invites.

    Sent while somebody waits and not tried again, because the token would have
    to be stored for that.
    """
    if not settings.EMAIL_URL:
        return False
    person = User.objects.filter(email__iexact=invitation.email).first()
    language = (person and person.language) or invitation.tenant.language or translation.get_language()
    zone = (person and person.time_zone) or invitation.tenant.time_zone
    about = {"invitation": invitation, "link": link, "until": invitation.expires_at}
    with translation.override(language), timezone.override(zone):
        message = EmailMessage(
            subject=_("[Tollgate] Invitation to %(tenant)s") % {"tenant": invitation.tenant.name},
            body=render_to_string("portal/mail/invitation.txt", about),
            to=[invitation.email],
            headers={"Auto-Submitted": "auto-generated"},
        )
    try:
        message.send()
    except (OSError, smtplib.SMTPException) as exc:
        logger.error("invitation %s could not be mailed: %s", invitation.pk, type(exc).__name__)
        return False
    return True
