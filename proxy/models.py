from __future__ import annotations

from urllib.parse import urlsplit

from django.core.exceptions import ValidationError
from django.db import models
from django.db.models import Q

from audit.checked import Checked
from audit.walls import Walled
from proxy.names import canonical
from tenants.exceptions import Refusal
from tenants.ids import new_id
from tenants.models import Tenant


def valid_base_url(url: str) -> None:
    """Accept the address of a server, without path, query or credentials.

    Everything behind the host is written by the gateway itself.
    """
    try:
        parts = urlsplit(url)
        sound = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # brackets that do not close, a port that is none
        sound = False
    if not sound or not url.isascii() or not url.isprintable() or " " in url:
        raise ValidationError("Give an address such as http://10.0.0.5:11434.")
    if parts.path not in ("", "/") or parts.query or parts.fragment or parts.username or parts.password:
        raise ValidationError("Give scheme, host and port only: http://10.0.0.5:11434.")


def valid_model_name(name: str) -> None:
    """Accept a model's name in the form in which names are compared."""
    try:
        plain = canonical(name)
    except Refusal as exc:
        raise ValidationError(f"“{name}” is not the name of a local model.") from exc
    if plain != name:
        raise ValidationError(f"Write this name as “{plain}”.")


class Upstream(Checked):
    """An Ollama server that calls are sent to."""

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    name = models.SlugField(
        max_length=63,
        unique=True,
        help_text="A short name for reports and limits: gpu-1. It cannot be changed later.",
    )
    base_url = models.CharField(
        max_length=255, validators=[valid_base_url], help_text="Scheme, host and port: http://10.0.0.5:11434"
    )
    enabled = models.BooleanField(default=True, help_text="Without it, no new call is sent there.")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["name"]
        constraints = [
            models.CheckConstraint(condition=~Q(name=""), name="proxy_upstream_has_a_name"),
            models.UniqueConstraint(fields=["base_url"], name="proxy_upstream_address_once"),
        ]

    def __str__(self) -> str:
        return self.name


class ModelAlias(Checked):
    """Another name for an installed model, for one tenant or for all.

    A caller may use it exactly if it may use the model that it stands for.
    """

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    tenant = models.ForeignKey(
        Tenant, on_delete=models.CASCADE, null=True, blank=True, help_text="Empty: for every tenant."
    )
    alias = models.CharField(
        max_length=350, validators=[valid_model_name], help_text="The name that callers use: default:latest"
    )
    model = models.CharField(
        max_length=350, validators=[valid_model_name], help_text="The installed model: llama3.2:3b"
    )

    objects = Walled(shared=True)

    class Meta:
        ordering = ["alias"]
        verbose_name_plural = "model aliases"
        constraints = [
            models.UniqueConstraint(
                fields=["tenant", "alias"], nulls_distinct=False, name="proxy_modelalias_once_per_tenant"
            ),
            models.CheckConstraint(
                condition=~Q(alias=models.F("model")), name="proxy_modelalias_is_another_name"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.alias} → {self.model}"
