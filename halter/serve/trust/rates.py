"""How much a key may ask for in a minute, and how long it has to wait where that is used up.

Each rate is a bucket that fills evenly up to one minute's worth. A request is let in when the bucket holds what it asks
for; one that asks for more than the bucket can ever hold is let in when it is full, and what is missing is owed. A
request is charged for the tokens that it may write, and gets back those that it did not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from threading import Lock

from halter.serve.trust.tenants import Tenant

MINUTE = 60.0
ROUNDING = 1e-6
"""Seconds: a sum's last digits send nobody away who has waited as long as they were told, and make 20 s no 21."""


class Bucket:
    """``per_minute`` units a minute; full at first. ``now`` is in seconds and never goes back."""

    def __init__(self, per_minute: int, now: float) -> None:
        self.capacity = float(per_minute)
        self._level, self._at = self.capacity, now

    def wait(self, amount: float, now: float) -> float:
        """Seconds until so much can be taken, 0 where it can be now."""
        self._fill(now)
        seconds = (min(amount, self.capacity) - self._level) * MINUTE / self.capacity
        return max(0.0, seconds - ROUNDING)

    def take(self, amount: float) -> None:
        """Take what ``wait`` has just said can be taken; a negative amount gives back, what does not fit is lost."""
        self._level -= amount

    def _fill(self, now: float) -> None:
        grown = self._level + (now - self._at) * self.capacity / MINUTE
        self._level, self._at = min(self.capacity, grown), now


class KeyRates:
    """The buckets of every key. For any number of threads; ``clock`` says the time in seconds and never goes back."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, Lock()
        self._buckets: dict[str, tuple[Bucket | None, Bucket | None]] = {}

    def admit(self, who: Tenant, tokens: int) -> int:
        """Charge a request that may use so many tokens, and return 0; or nothing, and the seconds of Retry-After."""
        now = self._clock()
        with self._lock:
            buckets = self._of(who, now)
            asked = [(bucket, amount) for bucket, amount in zip(buckets, (1, tokens)) if bucket is not None]
            wait = max((bucket.wait(amount, now) for bucket, amount in asked), default=0.0)
            if wait > 0:
                return math.ceil(wait)
            for bucket, amount in asked:
                bucket.take(amount)
            return 0

    def give_back(self, who: Tenant, tokens: int, requests: int = 0) -> None:
        """Give back the tokens that an admitted request was charged for and did not use; and the request itself, where
        nothing came of it."""
        with self._lock:
            for bucket, amount in zip(self._of(who, self._clock()), (requests, tokens), strict=True):
                if bucket is not None:
                    bucket.take(-amount)

    def _of(self, who: Tenant, now: float) -> tuple[Bucket | None, Bucket | None]:
        if who.key not in self._buckets:
            rates = (who.requests_per_minute, who.tokens_per_minute)
            requests, tokens = (None if rate is None else Bucket(rate, now) for rate in rates)
            self._buckets[who.key] = requests, tokens
        return self._buckets[who.key]
