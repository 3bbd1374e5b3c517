"""Everything that is said of one setting: the forecast, how long it takes, what fits, and the other choices."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from halter.planning.fit import Fit, Largest
from halter.planning.forecast import Forecast
from halter.planning.speed import Rates, StepTimes


@dataclass(frozen=True)
class Answer:
    """``budget`` bytes, from ``budget_source``; ``rates`` and ``times`` where they were asked for; ``choices`` ranked,
    where there is a budget that somebody named; ``note``: in which dtype is planned, where that is not plain."""

    forecast: Forecast
    budget: int
    budget_source: str
    largest: Largest
    rates: Rates | None = None
    times: StepTimes | None = None
    choices: tuple[Fit, ...] = ()
    note: str = ""

    @property
    def fits(self) -> bool:
        return self.forecast.training.total <= self.budget

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON; memory and disk in bytes, times in seconds for a thousand tokens."""
        return {
            **self.forecast.as_dict(),
            "budget": {"bytes": self.budget, "source": self.budget_source, "fits": self.fits, **asdict(self.largest)},
            "rates": None if self.rates is None else asdict(self.rates),
            "seconds_per_1000_tokens": None if self.times is None else asdict(self.times),
            "choices": [asdict(choice) for choice in self.choices],
            "note": self.note,
        }
