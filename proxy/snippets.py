"""How to call the gateway with a key, in the words of several tools, with everything filled in.

A snippet is text for a person to copy. Its parts are an address of ours, a
secret and the canonical name of a model, none of which has a character that a
shell or a language would take for something else.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _

_PLAIN = re.compile(r"[A-Za-z0-9_./:@\[\]-]+", re.ASCII)

_CURL = """\
curl --fail-with-body {address}/v1/chat/completions \\
  -H "Authorization: Bearer {secret}" \\
  -H "Content-Type: application/json" \\
  -d '{{"model": "{model}", "messages": [{{"role": "user", "content": "Say hello."}}]}}'
"""

_OPENAI = """\
from openai import OpenAI

client = OpenAI(base_url="{address}/v1", api_key="{secret}")
stream = client.chat.completions.create(
    model="{model}",
    messages=[{{"role": "user", "content": "Say hello."}}],
    stream=True,
)
for chunk in stream:
    if chunk.choices:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
print()
"""

_OLLAMA = """\
from ollama import Client

client = Client(host="{address}", headers={{"Authorization": "Bearer {secret}"}})
stream = client.chat(
    model="{model}",
    messages=[{{"role": "user", "content": "Say hello."}}],
    stream=True,
)
for part in stream:
    print(part.message.content or "", end="", flush=True)
print()
"""

_JAVASCRIPT = """\
const response = await fetch("{address}/v1/chat/completions", {{
  method: "POST",
  headers: {{
    Authorization: "Bearer {secret}",
    "Content-Type": "application/json",
  }},
  body: JSON.stringify({{
    model: "{model}",
    messages: [{{ role: "user", content: "Say hello." }}],
  }}),
}});
if (!response.ok) throw new Error(await response.text());
const answer = await response.json();
console.log(answer.choices[0].message.content);
"""

_ENVIRONMENT = """\
OPENAI_BASE_URL={address}/v1
OPENAI_API_KEY={secret}
OLLAMA_HOST={address}
OLLAMA_API_KEY={secret}
ANTHROPIC_BASE_URL={address}
ANTHROPIC_API_KEY={secret}
"""


@dataclass(frozen=True, slots=True)
class Snippet:
    """A text to be copied; ``about`` says what it needs or who reads it."""

    id: str
    title: str | Promise
    about: str | Promise
    text: str


def environment(address: str, secret: str) -> str:
    """Lines for a ``.env`` file, which the clients of OpenAI, Ollama and Anthropic read."""
    return _filled(_ENVIRONMENT, address=address, secret=secret)


def snippets(address: str, secret: str, model: str) -> list[Snippet]:
    """A call of ``model`` at the gateway that answers at ``address`` (no slash at its end), by each tool.

    Raises ``ValueError`` for a part that would not stand as itself in a snippet.
    """
    parts = {"address": address, "secret": secret, "model": model}
    return [
        Snippet("curl", "curl", _("In a shell."), _filled(_CURL, **parts)),
        Snippet("openai", "Python, openai", _("Needs: pip install openai"), _filled(_OPENAI, **parts)),
        Snippet("ollama", "Python, ollama", _("Needs: pip install ollama"), _filled(_OLLAMA, **parts)),
        Snippet(
            "javascript",
            "JavaScript",
            _("As a module, in Node.js from version 18 on."),
            _filled(_JAVASCRIPT, **parts),
        ),
    ]


def _filled(text: str, **parts: str) -> str:
    if odd := [name for name, part in parts.items() if not _PLAIN.fullmatch(part)]:
        raise ValueError(f"cannot stand in a snippet: {', '.join(odd)}")
    return text.format(**parts)
