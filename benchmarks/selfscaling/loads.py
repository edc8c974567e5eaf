"""Loads over hours: the CPUs that the requests of each second need."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

REQUEST_SECONDS = 0.00006
"""CPU time of one request, as benchmarks/README.md has it for one worker."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """A load. `cpus` returns the CPUs that the requests of a second need. `bursts` is the share of each second in which
    its requests arrive; 1 is evenly spread."""

    name: str
    hours: float
    cpus: Callable[[float], float]
    bursts: float = 1.0


def scenarios(source: random.Random) -> Iterator[Scenario]:
    """Yield steps, ramps, a day, spikes, noise, bursts, an overload, and a day in the shape of an access log."""
    yield Scenario("steps", 3, lambda t: (0.2, 2.5, 9.0, 9.0, 4.0, 0.2)[int(t // 1800)])
    yield Scenario("ramp up and down", 4, lambda t: 14 * (1 - abs(t - 7200) / 7200))
    yield Scenario("a day", 24, lambda t: 0.2 + 10 * max(0.0, math.sin((t / 3600 - 6) / 12 * math.pi)) ** 1.5)
    yield Scenario("spikes of 60 s", 4, lambda t: 6.0 if t % 1500 > 1440 else 0.6)
    levels = [1.5 * math.exp(source.gauss(0, 0.7)) for _ in range(4 * 60 + 1)]
    yield Scenario("noise", 4, lambda t: levels[int(t // 60)])
    yield Scenario("steady, in bursts", 4, lambda t: 0.7, bursts=0.15)
    yield Scenario("steady, at a threshold", 4, lambda t: 2.94 + 0.05 * math.sin(t))
    yield Scenario("more than the maximum", 2, lambda t: 0.2 if t < 600 or t > 5400 else 60.0)
    minutes = access_log_day(source)
    yield Scenario("replayed", 24, lambda t: minutes[int(t // 60)])


def access_log_day(source: random.Random) -> list[float]:
    """Return a day by minutes: two peaks, a lunch break, jobs at full hours, random variation."""
    cpus = []
    for minute in range(24 * 60 + 1):
        hour = minute / 60
        people = 5 * math.exp(-((hour - 10.5) ** 2) / 6) + 6 * math.exp(-((hour - 15.5) ** 2) / 8)
        jobs = 3.0 if minute % 60 < 4 and 1 <= hour < 6 else 0.0
        cpus.append(max(0.05, (0.15 + people) * source.lognormvariate(0, 0.15) + jobs))
    return cpus
