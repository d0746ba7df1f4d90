"""Granting GPU time to running calls, bit by bit.

Nobody knows beforehand for how long a model will work on a call, so a call
begins with the time of one lease, or what the tightest limit has left of it, and
asks for more while it runs. What it has been granted is held; when there is no
more, it ends. So no call passes its hold, and calls side by side share what is
left: none of them holds more than it needs until it is heard of again.
"""

from __future__ import annotations

from budgets.counters import NONE, PROLONG, hold_key, run
from budgets.reservations import Reservation
from tenants.quick_settings import settings
from tenants.redis import RedisError


async def prolong(reservation: Reservation) -> None:
    """Hold more time for a call that has less than half a lease left, as far as there is some.

    Raises ``RedisError``. A call without a limit that refuses and counts GPU
    time is left alone.
    """
    lease_ms = settings.LEASE_SECONDS * 1000
    granted, elapsed = reservation.gpu_cap_ms, reservation.elapsed_ms()
    if granted is None or granted - elapsed > lease_ms // 2:
        return
    rooms = await _hold(reservation, elapsed + lease_ms)
    most = [
        reservation.charges[place].most_gpu_ms(reservation.output_cap, room) for place, room in rooms.items()
    ]
    if most and min(most) > granted:
        # Another call may take it meanwhile; then the next heartbeat asks again.
        await _hold(reservation, min(most))


async def _hold(reservation: Reservation, gpu_ms: int) -> dict[int, int]:
    """Hold ``gpu_ms`` in all for a call, and let it run for so long.

    If there is less, nothing changes, and the room of each limit that refuses
    is returned by the place of its counter, what the call holds included.
    """
    request_id = str(reservation.request_id)
    places = [place for place, cost in enumerate(reservation.charges) if cost.gpu_rate]
    limits = []
    terms: list[int] = []
    for place in places:
        limit = reservation.limits[place]
        limits.append(limit.limit if limit.hard and limit.limit is not None else NONE)
        terms += (place + 1, reservation.charges[place].amount(reservation.output_cap, gpu_ms), limits[-1])
    keys = [hold_key(request_id), *(reservation.counters[place].key for place in places)]
    state, echoed, rooms = await run(PROLONG, keys, request_id, gpu_ms, *terms)
    if echoed.decode() != request_id:
        raise RedisError(f"asked for more time for {request_id}, and was answered about another")
    if state == b"held":
        reservation.gpu_cap_ms = max(reservation.gpu_cap_ms or 0, gpu_ms)
    if state != b"short":
        return {}
    return {place: room for place, limit, room in zip(places, limits, rooms, strict=True) if limit != NONE}
