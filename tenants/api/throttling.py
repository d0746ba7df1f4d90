"""How often one actor may ask."""

from __future__ import annotations

import logging
import time
from typing import Any

from django.conf import settings
from rest_framework.request import Request
from rest_framework.throttling import BaseThrottle

from tenants.api.programs import actor_of
from tenants.redis import PARTITION, RedisError, redis_now

logger = logging.getLogger(__name__)

MINUTE = 60


class PerActor(BaseThrottle):
    """``MANAGEMENT_REQUESTS_PER_MINUTE`` of each key and each person, in every minute of the clock.

    While Redis cannot be asked nobody is stopped: a kill switch has to be armed then too.
    """

    def allow_request(self, request: Request, view: Any) -> bool:
        now = time.time()
        self.seconds_left = MINUTE - now % MINUTE
        name = f"{PARTITION}:manage:{actor_of(request.user).replace(':', '-')}:{int(now // MINUTE)}"
        pipeline = redis_now().pipeline(transaction=True)
        pipeline.incr(name)
        pipeline.expire(name, 2 * MINUTE)
        try:
            asked, _ = pipeline.execute()
        except RedisError as exc:
            logger.warning("requests to the management API are not counted: %s", exc)
            return True
        return int(asked) <= settings.MANAGEMENT_REQUESTS_PER_MINUTE

    def wait(self) -> float:
        """Seconds until the next minute begins, told as ``Retry-After``."""
        return self.seconds_left
