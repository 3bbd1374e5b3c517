"""Rates beside a plain reference, with a clock that is told the time."""

from __future__ import annotations

import math
import random
import threading

import pytest

from halter.serve.trust.rates import KeyRates
from halter.serve.trust.tenants import Tenant


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def key(requests: int | None = None, tokens: int | None = None, id: str = "a") -> Tenant:
    return Tenant("acme", id, requests_per_minute=requests, tokens_per_minute=tokens)


class Reference:
    """What was let in, and by how much a bucket that fills evenly was charged: all of it anew at each question."""

    def __init__(self, per_minute: float) -> None:
        self.per_minute, self.charges = per_minute, []

    def level(self, now: float) -> float:
        level, at = self.per_minute, 1000.0
        for when, amount in self.charges:
            level = min(self.per_minute, level + (when - at) * self.per_minute / 60)
            level, at = min(self.per_minute, level - amount), when
        return min(self.per_minute, level + (now - at) * self.per_minute / 60)

    def wait(self, amount: float, now: float) -> float:
        missing = min(amount, self.per_minute) - self.level(now)
        return max(0.0, missing * 60 / self.per_minute - 1e-6)


@pytest.mark.parametrize("seed", range(20))
def test_as_the_reference_has_it(seed: int) -> None:
    draw, clock = random.Random(seed), Clock()
    one = key(draw.randint(1, 100), draw.randint(10, 5000))
    rates = KeyRates(clock)
    requests, tokens = Reference(one.requests_per_minute or 0), Reference(one.tokens_per_minute or 0)
    seen = {"in": 0, "out": 0}
    for _ in range(200):
        clock.now += draw.choice([0, 0.001, draw.expovariate(1), 90])
        amount = draw.randint(1, 2 * (one.tokens_per_minute or 0)) // draw.choice([1, 10])
        wait = max(requests.wait(1, clock.now), tokens.wait(amount, clock.now))
        told = rates.admit(one, amount)
        assert told == math.ceil(wait)
        seen["out" if told else "in"] += 1
        if told == 0:
            requests.charges.append((clock.now, 1))
            tokens.charges.append((clock.now, amount))
            if draw.random() < 0.5:
                unused = draw.randint(0, amount)
                rates.give_back(one, unused)
                tokens.charges.append((clock.now, -unused))
    assert min(seen.values()) > 5


def test_who_waits_as_long_as_told_is_let_in() -> None:
    draw = random.Random(0)
    for _ in range(300):
        clock = Clock()
        clock.now = draw.uniform(0, 1e7)
        one, rates = key(draw.randint(1, 10_000), draw.randint(1, 1_000_000)), KeyRates(clock)
        for _ in range(20):
            amount = draw.randint(1, 2_000_000)
            if (wait := rates.admit(one, amount)) > 0:
                clock.now += wait
                assert rates.admit(one, amount) == 0


def test_whole_seconds_are_told_as_they_are() -> None:
    """Whatever the clock's fractions do to the sums, and however often somebody asks too early."""
    draw = random.Random(0)
    for _ in range(500):
        clock = Clock()
        clock.now = draw.uniform(0, 1)
        per_minute = draw.choice([1, 3, 6, 15, 30, 60])
        one, rates = key(per_minute), KeyRates(clock)
        assert all(rates.admit(one, 1) == 0 for _ in range(per_minute))
        for _ in range(5):
            wait, began = rates.admit(one, 1), clock.now
            assert wait == 60 // per_minute
            for part in sorted(draw.random() for _ in range(3)):
                clock.now = began + part * wait
                assert 1 <= rates.admit(one, 1) <= wait
            clock.now = began + wait
            assert rates.admit(one, 1) == 0


def test_a_minutes_worth_and_no_more() -> None:
    clock = Clock()
    rates, one = KeyRates(clock), key(requests=3)
    assert [rates.admit(one, 10**6) for _ in range(4)] == [0, 0, 0, 20]
    clock.now += 19.5
    assert rates.admit(one, 1) == 1
    clock.now += 0.5
    assert [rates.admit(one, 1), rates.admit(one, 1)] == [0, 20]
    clock.now += 10_000  # a bucket holds one minute's worth
    assert [rates.admit(one, 1) for _ in range(4)] == [0, 0, 0, 20]


def test_a_refused_request_is_charged_for_nothing() -> None:
    clock = Clock()
    rates, one = KeyRates(clock), key(requests=2, tokens=100)
    assert rates.admit(one, 100) == 0
    assert [rates.admit(one, 50) for _ in range(5)] == [30] * 5  # by its tokens: no request is taken for it
    clock.now += 30
    assert rates.admit(one, 50) == 0


def test_more_than_a_minute_holds_is_owed() -> None:
    clock = Clock()
    rates, one = KeyRates(clock), key(tokens=100)
    assert rates.admit(one, 250) == 0
    assert rates.admit(one, 1) == 91  # 151 tokens, at 100 a minute
    rates.give_back(one, 200)
    assert rates.admit(one, 50) == 0


def test_a_request_of_which_nothing_came_is_charged_for_nothing() -> None:
    rates, one = KeyRates(Clock()), key(requests=1, tokens=100)
    assert rates.admit(one, 80) == 0
    rates.give_back(one, 80, requests=1)
    assert [rates.admit(one, 100), rates.admit(one, 1)] == [0, 60]


def test_keys_have_buckets_of_their_own_and_some_have_none() -> None:
    rates = KeyRates(Clock())
    assert [rates.admit(key(1, id=id), 1) for id in ("a", "b", "a")] == [0, 0, 60]
    assert [rates.admit(key(id="c"), 10**9) for _ in range(50)] == [0] * 50
    rates.give_back(key(id="c"), 5)


def test_threads_together_get_no_more() -> None:
    rates, one, admitted = KeyRates(Clock()), key(500), []

    def ask() -> None:
        admitted.extend(rates.admit(one, 1) for _ in range(200))

    threads = [threading.Thread(target=ask) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert admitted.count(0) == 500
