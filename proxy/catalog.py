"""Which models are installed where, and which of them a caller may use.

Every web process polls: whoever takes an upstream's turn asks it for its models
and puts the answer into Redis, where it lives for ``CATALOG_MAX_AGE_SECONDS``;
every process copies what is there, at its next poll or with the first call for
which it knows no models. What Redis loses earlier is known for as long. A set
that is empty or too old refuses every call. Names are compared in their
canonical form only.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import logging
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Protocol
from uuid import UUID

import httpx
import orjson

from budgets.single_flight import SingleFlight
from keys.verification import Caller
from proxy import upstream
from proxy.dialects.ollama import redact_entry, redact_loaded, redact_show
from proxy.exceptions import BadRequest, CloudModelRefused, ModelRefused, NoModels, UpstreamFailed
from proxy.models import ModelAlias, Upstream
from proxy.names import canonical
from tenants import snapshots
from tenants.database import DatabaseError, read_aside
from tenants.exceptions import Refusal
from tenants.quick_settings import settings
from tenants.redis import PARTITION, RedisError, redis_async, redis_now

logger = logging.getLogger(__name__)

# Tokens that a model's own renderer may add to any prompt, on top of its template and system text.
RENDERER_TOKENS = 256
# How often a process with nothing to offer looks again, in seconds.
IMPATIENCE_SECONDS = 0.5
# Descriptions asked of one upstream at the same time.
DESCRIBED_AT_ONCE = 4
# How long an answer of /api/ps is good for: however many ask us, upstream is asked once.
LOADED_SECONDS = 1.0


@dataclasses.dataclass(frozen=True, slots=True)
class Installed:
    """One model on one or more upstreams, as they describe it.

    ``entry`` and ``shown`` are what ``/api/tags`` and ``/api/show`` tell a
    caller, already without what is nobody's business. ``overhead_tokens`` bounds
    what the model itself adds to a prompt, ``context_tokens`` all that it can
    read at once, where that is known.
    """

    name: str
    spelling: str
    upstreams: tuple[str, ...]
    entry: dict[str, Any]
    shown: dict[str, Any]
    overhead_tokens: int
    context_tokens: int | None


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
    """Where a call goes: an upstream, and the model in the spelling used there."""

    model: Installed
    upstream: str
    base_url: str


Aliases = dict[tuple[UUID | None, str], str]


@dataclasses.dataclass(frozen=True, slots=True)
class _Rows:
    """Addresses of enabled upstreams by name, and the model by tenant (None: everybody's) and alias."""

    addresses: dict[str, str]
    aliases: Aliases


@dataclasses.dataclass(frozen=True, slots=True)
class _Kept:
    """Rows as they lie in Redis for one tenant, with the generations they are as new as."""

    generations: tuple[int, int]
    rows: _Rows


@dataclasses.dataclass(frozen=True, slots=True)
class _Published:
    """What was found at one upstream, and until when (monotonic) that is good."""

    items: list[dict[str, Any]]
    good_until: float


class Catalog:
    """One process' copy of what is installed."""

    def __init__(self) -> None:
        self._models: dict[str, Installed] = {}
        self._published: dict[str, _Published] = {}
        self._good_until = 0.0
        self._addresses: dict[str, str] = {}
        self._aliases: Aliases = {}
        self._read_at: dict[UUID, tuple[int, int]] = {}
        self._reads = self._newest_read = 0
        self._described: dict[tuple[str, str, str], dict[str, Any]] = {}
        self._loaded: list[dict[str, Any]] = []
        self._loaded_until = 0.0
        self._running: Counter[str] = Counter()
        self._flights: SingleFlight[None] = SingleFlight()

    def resolve(self, caller: Caller, name: str, closed: frozenset[str] = frozenset()) -> Target:
        """Where ``name`` runs for this caller, at an upstream that is not ``closed`` if there is one.

        Raises ``NoModels`` when nothing is known to be installed, ``BadRequest``
        for what is no name, and what looks like one and the same
        ``ModelRefused`` for a model that does not exist, that this caller may
        not use, or that would leave the house.
        """
        models = self._fresh()
        plain = canonical(name)
        plain = self._aliases.get((caller.tenant_id, plain)) or self._aliases.get((None, plain)) or plain
        model = models.get(plain)
        if model is None or not may_use(caller, plain):
            raise ModelRefused(name)
        upstreams = [one for one in model.upstreams if one not in closed] if closed else model.upstreams
        chosen = min(upstreams or model.upstreams, key=lambda one: self._running[one])
        return Target(model, chosen, self._addresses[chosen])

    def effective(self, caller: Allowing) -> list[Installed]:
        """What this caller may call, newest first as upstream lists it; raises ``NoModels``."""
        return [model for name, model in self._fresh().items() if may_use(caller, name)]

    async def loaded(self, allowed: set[str]) -> list[dict[str, Any]]:
        """The entries of every upstream's ``/api/ps`` whose models are among ``allowed``, of this second."""
        if time.monotonic() > self._loaded_until:
            await self._flights.do("loaded", self._ask_what_is_loaded)
        return [redact_loaded(entry) for entry in self._loaded if canonical(entry["name"]) in allowed]

    async def _ask_what_is_loaded(self) -> None:
        """An upstream that does not answer has nothing loaded as far as we know."""

        async def loaded_at(url: str) -> list[dict[str, Any]]:
            try:
                return _entries(await upstream.fetch(url, "GET", "/api/ps"))
            except Refusal as exc:
                logger.warning("an upstream did not say what is loaded: %s", exc)
                return []

        answers = await asyncio.gather(*(loaded_at(url) for url in self._addresses.values()))
        self._loaded = [entry for entries in answers for entry in entries]
        self._loaded_until = time.monotonic() + LOADED_SECONDS

    def _fresh(self) -> dict[str, Installed]:
        if not self._knows_models():
            raise NoModels
        return self._models

    def _knows_models(self) -> bool:
        if time.monotonic() > self._good_until:
            # One upstream's list is too old; those of the others may still be good.
            self._put_together()
        return bool(self._models)

    def upstreams(self) -> list[str]:
        """The names of the upstreams that are enabled."""
        return sorted(self._addresses)

    def started(self, upstream_name: str) -> None:
        """Count a call that runs on an upstream, so that the next one goes to the least busy."""
        self._running[upstream_name] += 1

    def ended(self, upstream_name: str) -> None:
        """The call has left its upstream."""
        self._running[upstream_name] -= 1

    async def keep_fresh(self) -> None:
        """Poll for ever; trouble is logged and the next round tries again."""
        while True:
            try:
                await self.refresh()
            except (RedisError, OSError) as exc:
                logger.warning("the list of models could not be refreshed: %s", exc)
            await asyncio.sleep(
                settings.CATALOG_REFRESH_SECONDS if self._knows_models() else IMPATIENCE_SECONDS
            )

    async def refresh(self) -> None:
        """Read upstreams and aliases, ask those upstreams whose turn it is, copy what Redis holds."""
        try:
            await self.reread()
        except (DatabaseError, TimeoutError) as exc:
            # Those that are known may still be called.
            logger.warning("upstreams could not be read: %r", exc)
        await asyncio.gather(*(self._poll(name, url) for name, url in self._addresses.items()))
        await self._copy()

    async def catch_up(self, caller: Caller) -> None:
        """Have upstreams and aliases that are as new as the caller's settings, before its model is resolved.

        Reads nothing unless something of its tenant or of the platform has
        changed, or no model is known: another process may have published some
        since this one polled. Raises ``NoModels`` if neither PostgreSQL nor
        Redis has upstreams and aliases, or Redis cannot be asked for models.
        """
        generations = (caller.tenant_generation, caller.platform_generation)
        try:
            if self._read_at.get(caller.tenant_id) != generations:
                await self._flights.do((caller.tenant_id, generations), lambda: self._read_for(caller))
                self._read_at[caller.tenant_id] = generations
            if not self._knows_models():
                await self._flights.do("published", self._copy)
        except (DatabaseError, RedisError, TimeoutError) as exc:
            raise NoModels from exc

    async def _read_for(self, caller: Caller) -> None:
        """Read the rows anew; while PostgreSQL is away, take what another process read for this tenant."""
        name, generations = caller.tenant_id.hex, (caller.tenant_generation, caller.platform_generation)
        ours = (None, caller.tenant_id)
        kept = await snapshots.kept("upstreams", name, _Kept)
        known = kept.rows if kept is not None and kept.generations == generations else None
        self._reads += 1
        number = self._reads
        rows = await snapshots.read_or_kept(_rows, known)
        if rows is known:
            others = {one: model for one, model in self._aliases.items() if one[0] not in ours}
            self._take(number, _Rows(rows.addresses, others | rows.aliases))
            await self._copy()
            return
        self._take(number, rows)
        aliases = {one: model for one, model in rows.aliases.items() if one[0] in ours}
        await snapshots.keep("upstreams", name, _Kept(generations, _Rows(rows.addresses, aliases)))

    async def reread(self) -> None:
        """Take over upstreams and aliases as the database has them now."""
        self._reads += 1
        number = self._reads
        self._take(number, await read_aside(_rows))

    def _take(self, number: int, rows: _Rows) -> None:
        """Take over what the read of this number brought; one that began earlier may bring older rows."""
        if number > self._newest_read:
            self._newest_read, self._addresses, self._aliases = number, rows.addresses, rows.aliases
            self._put_together()

    async def _poll(self, name: str, base_url: str) -> None:
        """Ask one upstream, if nobody else did within the refresh time, and publish its answer."""
        redis = redis_async()
        turn = max(1, int(settings.CATALOG_REFRESH_SECONDS * 900))
        if not await redis.call("SET", f"{PARTITION}:catalog-turn:{name}", 1, "NX", "PX", turn):
            return
        try:
            tags = await upstream.fetch(base_url, "GET", "/api/tags")
            entries = _entries(tags)
            few = asyncio.Semaphore(DESCRIBED_AT_ONCE)
            described = await asyncio.gather(*(self._describe(base_url, entry, few) for entry in entries))
        except (Refusal, httpx.HTTPError) as exc:
            logger.warning("upstream %s did not list its models: %r", name, exc)
            # The next round may try again at once instead of waiting for the turn to pass.
            await redis.call("DEL", f"{PARTITION}:catalog-turn:{name}")
            return
        listed = {_identity(base_url, entry) for entry in entries}
        self._described = {
            one: shown for one, shown in self._described.items() if one[0] != base_url or one in listed
        }
        found = orjson.dumps([item for item in described if item is not None])
        age = int(settings.CATALOG_MAX_AGE_SECONDS * 1000)
        await redis.call("SET", published_at(name), found, "PX", age)

    async def _describe(
        self, base_url: str, entry: dict[str, Any], few: asyncio.Semaphore
    ) -> dict[str, Any] | None:
        """An entry with what ``/api/show`` says of its model.

        It is asked once per digest, and kept without what is nobody's business.
        None when upstream does not say it: what such a model adds to a prompt
        cannot be bounded, so it cannot be called.
        """
        known = _identity(base_url, entry)
        if known not in self._described:
            try:
                async with few:
                    shown = await upstream.fetch(base_url, "POST", "/api/show", {"model": entry["name"]})
            except Refusal as exc:
                logger.warning("model %s was not described: %r", entry["name"], exc)
                return None
            own = sum(len(orjson.dumps(shown.get(part) or "")) for part in ("system", "template", "messages"))
            self._described[known] = {
                "shown": redact_show(shown),
                "overhead_tokens": own + RENDERER_TOKENS,
                "context_tokens": _context_tokens(shown),
            }
        return {"entry": redact_entry(entry), **self._described[known]}

    async def _copy(self) -> None:
        """Take over what Redis holds of every enabled upstream; what it has not stays until it is too old."""
        redis = redis_async()
        for name in self._addresses:
            key = published_at(name)
            published, left_ms = await asyncio.gather(redis.call("GET", key), redis.call("PTTL", key))
            if published is not None and left_ms > 0:
                good_until = time.monotonic() + left_ms / 1000
                self._published[name] = _Published(orjson.loads(published), good_until)
        self._put_together()

    def read_now(self) -> None:
        """``reread`` and copy, blocking. Raises ``RedisError`` and Django's ``db.Error``."""
        rows, redis = _rows(), redis_now()
        pipeline = redis.pipeline(transaction=False)
        for name in rows.addresses:
            pipeline.get(published_at(name))
            pipeline.pttl(published_at(name))
        answers = pipeline.execute()
        for name, found, left_ms in zip(rows.addresses, answers[::2], answers[1::2], strict=True):
            if found is not None and left_ms > 0:
                good_until = time.monotonic() + left_ms / 1000
                self._published[name] = _Published(orjson.loads(found), good_until)
        self._take(1, rows)

    def _put_together(self) -> None:
        """Offer what is published, and not too old, of the upstreams that are enabled now."""
        now = time.monotonic()
        self._published = {name: one for name, one in self._published.items() if now <= one.good_until}
        offered = {name: one for name, one in self._published.items() if name in self._addresses}
        self._models = merged({name: one.items for name, one in offered.items()})
        self._good_until = min((one.good_until for one in offered.values()), default=float("inf"))


def published_at(upstream_name: str) -> str:
    """Where in Redis lies what was found at an upstream."""
    return f"{PARTITION}:catalog:{upstream_name}"


def merged(found: Mapping[str, Iterable[dict[str, Any]]]) -> dict[str, Installed]:
    """The models of all upstreams, by their canonical names, from what was found at each."""
    models: dict[str, Installed] = {}
    for upstream_name, items in found.items():
        for item in items:
            _add(models, upstream_name, item)
    return models


class Allowing(Protocol):
    """What says which models may be called: a caller, or the settings of a key."""

    @property
    def allow_all_models(self) -> bool: ...

    @property
    def models(self) -> frozenset[str] | None: ...


def may_use(caller: Allowing, plain: str) -> bool:
    """Whether the caller's own settings, or else its tenant's, let it use a model."""
    return caller.allow_all_models or (caller.models is not None and plain in _canonical_set(caller.models))


@functools.lru_cache(maxsize=4096)
def _canonical_set(names: frozenset[str]) -> frozenset[str]:
    """Model names as people wrote them into an allow-list, in the form in which names are compared."""
    return frozenset(filter(None, map(_canonical_or_none, names)))


def _canonical_or_none(name: str) -> str | None:
    try:
        return canonical(name)
    except (BadRequest, CloudModelRefused):
        return None


def _entries(listing: dict[str, Any]) -> list[dict[str, Any]]:
    """The models of a listing that can be called here; raises ``UpstreamFailed`` if it is no listing."""
    listed = listing.get("models") or []
    if not isinstance(listed, list):
        raise UpstreamFailed("the models are not a list")
    return [entry for entry in listed if _usable(entry)]


def _identity(base_url: str, entry: dict[str, Any]) -> tuple[str, str, str]:
    """What a description holds for: another model of the same name has another digest."""
    return base_url, entry["name"], str(entry.get("digest"))


def _usable(entry: Any) -> bool:
    """A local model with a name that we understand; a stub of a remote one is not."""
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str) or entry.get("remote_host"):
        return False
    return _canonical_or_none(entry["name"]) is not None


def _add(found: dict[str, Installed], upstream_name: str, item: dict[str, Any]) -> None:
    spelling = item["entry"]["name"]
    name = canonical(spelling)
    known = found.get(name)
    if known is None:
        found[name] = Installed(
            name,
            spelling,
            (upstream_name,),
            item["entry"],
            item["shown"],
            item["overhead_tokens"],
            item["context_tokens"],
        )
    else:
        found[name] = dataclasses.replace(
            known,
            upstreams=(*known.upstreams, upstream_name),
            overhead_tokens=max(known.overhead_tokens, item["overhead_tokens"]),
            context_tokens=_larger(known.context_tokens, item["context_tokens"]),
        )


def _larger(one: int | None, other: int | None) -> int | None:
    """The larger of two bounds, of which None is no bound."""
    return None if one is None or other is None else max(one, other)


def _context_tokens(shown: dict[str, Any]) -> int | None:
    """How many tokens a model was made to read; Ollama never lets it read more."""
    info = shown.get("model_info")
    named = info.items() if isinstance(info, dict) else ()
    lengths = [value for name, value in named if name.endswith(".context_length")]
    return lengths[0] if len(lengths) == 1 and isinstance(lengths[0], int) and lengths[0] > 0 else None


def _rows() -> _Rows:
    """Enabled upstreams and all aliases."""
    upstreams = Upstream.objects.filter(enabled=True).values_list("name", "base_url")
    aliases = ModelAlias.objects.values_list("tenant_id", "alias", "model")
    return _Rows(
        {name: url.rstrip("/") for name, url in upstreams},
        {(tenant_id, alias): model for tenant_id, alias, model in aliases},
    )


def published() -> Catalog:
    """What all processes together know just now, for pages and commands; raises as ``Catalog.read_now``."""
    known = Catalog()
    known.read_now()
    return known


catalog = Catalog()
