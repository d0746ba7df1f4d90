"""The one page that shows a secret, and how to call with it."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.debug import sensitive_variables

from keys.above import Preview
from keys.callers import Caller, caller_of
from keys.models import ApiKey
from proxy.catalog import Installed, published
from proxy.portal_keys.showing import shown
from proxy.previews import preview
from proxy.snippets import environment, snippets
from tenants.access import Access

# Where the key may call nothing yet: a name of the same form, and a sentence beside it.
EXAMPLE_MODEL = "llama3.2:latest"
# What Ollama calls the capability to answer.
CHATS = "completion"


@sensitive_variables("secret", "context")
def secret_page(
    request: HttpRequest, access: Access, key: ApiKey, secret: str, *, rotated: bool
) -> HttpResponse:
    """The answer to the request that made ``secret``: the only one that has it."""
    caller = caller_of(key)
    seen = preview(caller)
    # People and programs come to the same door.
    address = request.build_absolute_uri("/").rstrip("/")
    model = _model_to_chat_with(caller, seen)
    context = {
        "row": shown(access, [key])[0],
        "secret": secret,
        "rotated": rotated,
        "address": address,
        "preview": seen,
        "model": model,
        "snippets": snippets(address, secret, model or EXAMPLE_MODEL),
        "environment": environment(address, secret),
        "chats": bool(model) and "chat" in seen.scopes,
    }
    return render(request, "portal/keys/secret.html", context)


def _model_to_chat_with(caller: Caller, seen: Preview) -> str:
    """One of the models that the key may call now and that answers chats; empty if there is none."""
    if not seen.models:
        return ""
    chatting = [model.name for model in published().effective(caller) if CHATS in _capabilities(model)]
    return min((name for name in chatting if name in seen.models), default="")


def _capabilities(model: Installed) -> list[str]:
    """What a model can do; Ollama before 0.6.4 does not tell, and then it is taken for one that chats."""
    return model.shown.get("capabilities") or [CHATS]
