import json
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandParser
from django.db import transaction

from audit.recording import person_at_the_shell
from tenants import generations, services
from tenants.commands import PENDING, add_model_arguments, told_plainly
from tenants.models import Member, Tenant, User


class Command(BaseCommand):
    help = "Create a tenant, with a first owner if wanted."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--slug", required=True, help="its short name, such as acme")
        parser.add_argument("--name", required=True, help="as people write it, such as 'ACME Laboratories'")
        parser.add_argument("--time-zone", default="UTC", help="zone of its days and months (default: UTC)")
        parser.add_argument(
            "--language",
            choices=[code for code, _ in settings.LANGUAGES],
            default="",
            help="language of mails to those who have chosen none (default: English)",
        )
        parser.add_argument(
            "--owner",
            metavar="E-MAIL",
            help="e-mail of the first owner; if there is no such user, one is created without a password",
        )
        add_model_arguments(parser, "a key that says nothing itself")
        parser.add_argument("--json", action="store_true", help="print the result as JSON")

    def handle(self, *args: Any, **options: Any) -> None:
        with told_plainly(), transaction.atomic():
            tenant = services.create_tenant(
                slug=options["slug"],
                name=options["name"],
                time_zone=options["time_zone"],
                language=options["language"],
                allow_all_models=options["all_models"],
                models=options["models"],
                actor=person_at_the_shell(),
            )
            owner = _add_owner(tenant, options["owner"]) if options["owner"] else None
        in_force = generations.in_force(tenant.pk)
        if options["json"]:
            self.stdout.write(json.dumps(_described(tenant, owner) | {"in_force": in_force}))
            return
        self.stdout.write(f"Created tenant {tenant.slug} ({tenant.pk}).")
        if owner:
            self.stdout.write(f"{owner.user.email} is its owner.")
        if not in_force:
            self.stdout.write(PENDING)


def _add_owner(tenant: Tenant, email: str) -> Member:
    user = User.objects.filter(email__iexact=email).first()
    if user is None:
        user = services.create_user(username=email, email=email, actor=person_at_the_shell())
    return services.add_member(tenant=tenant, user=user, role=Member.Role.OWNER, actor=person_at_the_shell())


def _described(tenant: Tenant, owner: Member | None) -> dict[str, Any]:
    return {
        "tenant_id": str(tenant.pk),
        "slug": tenant.slug,
        "name": tenant.name,
        "time_zone": tenant.time_zone,
        "language": tenant.language,
        "allow_all_models": tenant.allow_all_models,
        "models": tenant.models,
        "owner": owner and owner.user.email,
        "owner_member_id": owner and str(owner.pk),
    }
