import json
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from audit.recording import person_at_the_shell
from keys import secrets, services
from keys.endpoints import ENDPOINTS
from tenants import generations
from tenants.commands import (
    PENDING,
    add_model_arguments,
    member_with,
    moment,
    service_account_called,
    tenant_called,
    told_plainly,
)


class Command(BaseCommand):
    help = "Issue a key and print its secret, once."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--tenant", required=True, metavar="SLUG", help="the tenant the key belongs to")
        parser.add_argument("--label", required=True, help="what the key is for, such as nightly-report")
        holder = parser.add_mutually_exclusive_group()
        holder.add_argument(
            "--member", metavar="E-MAIL", help="the member it belongs to (default: the tenant itself)"
        )
        holder.add_argument("--service-account", metavar="NAME", help="or the service account")
        parser.add_argument(
            "--expires", metavar="WHEN", help="90d, 12h, a date or a time; without it the key does not expire"
        )
        add_model_arguments(parser, "the key")
        parser.add_argument(
            "--scope",
            action="append",
            dest="scopes",
            choices=ENDPOINTS,
            help="an endpoint scope that it is limited to; may be repeated",
        )
        parser.add_argument(
            "--address-block",
            action="append",
            dest="address_blocks",
            metavar="NETWORK",
            help="a network that it may be used from, such as 192.0.2.0/24; may be repeated",
        )
        parser.add_argument("--json", action="store_true", help="print the result as JSON")

    def handle(self, *args: Any, **options: Any) -> None:
        tenant = tenant_called(options["tenant"])
        member = member_with(options["member"], tenant) if options["member"] else None
        name = options["service_account"]
        account = service_account_called(name, tenant) if name else None
        expires_at = moment(options["expires"], tenant.time_zone) if options["expires"] else None
        # A list of its own must not be overruled by a tenant that may call everything.
        allow_all_models = False if options["models"] else (options["all_models"] or None)
        with told_plainly():
            key, secret = services.issue_key(
                tenant=tenant,
                member=member,
                service_account=account,
                label=options["label"],
                expires_at=expires_at,
                allow_all_models=allow_all_models,
                models=options["models"],
                scopes=options["scopes"],
                address_blocks=options["address_blocks"],
                actor=person_at_the_shell(),
            )
        in_force = generations.in_force(tenant.pk)
        if options["json"]:
            described = {
                "key_id": str(key.pk),
                "public_id": secrets.public_id_of(secret),
                "secret": secret,
                "tenant": tenant.slug,
                "member": member and member.user.email,
                "service_account": account and account.name,
                "label": key.label,
                "expires_at": expires_at and expires_at.isoformat(),
                "allow_all_models": key.allow_all_models,
                "models": key.models,
                "scopes": key.scopes,
                "address_blocks": key.address_blocks,
                "in_force": in_force,
            }
            self.stdout.write(json.dumps(described))
            return
        if not in_force:
            self.stdout.write(PENDING)
        # The secret is the last line, for those who take it from there.
        self.stdout.write(
            f"Issued key {key.label} ({key.pk}) of {tenant.slug}. Its secret is not shown again:"
        )
        self.stdout.write(secret)
