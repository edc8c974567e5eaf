"""The loads of the simulation: arrivals per second over time, and the mean service time."""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

HOURS = 2


@dataclass(frozen=True, slots=True)
class Load:
    """`rate` returns requests per second at a time in seconds; `service_seconds` is the mean service time."""

    name: str
    service_seconds: float
    rate: Callable[[float], float]
    from_zero: bool = False


def loads() -> tuple[Load, ...]:
    """Return the ten loads. The same at each call."""
    levels = random.Random(1)
    minutes = [3 * math.exp(levels.gauss(0, 0.8)) for _ in range(HOURS * 60)]
    return (
        Load("5/s x 1 s", 1, lambda _: 5),
        Load("50/s x 0.1 s", 0.1, lambda _: 50),
        Load("1/s x 5 s", 5, lambda _: 1),
        Load("0.1/s x 30 s", 30, lambda _: 0.1),
        Load("steps", 0.5, lambda t: (2, 30, 30, 6, 18, 4)[int(t // 1200)]),
        Load("a day in 2 h", 1, lambda t: 0.3 + 10 * math.sin(t / 7200 * math.pi) ** 3),
        Load("spikes of 40 s", 0.5, lambda t: 40 if t % 1100 > 1060 else 3),
        Load("noise", 1, lambda t: minutes[int(t // 60)]),
        Load("bursts of 20 s", 2, lambda t: 10 if t % 300 >= 280 else 0.5),
        Load("on-off from zero", 1, lambda t: 2 if t % 1200 < 400 else 0, from_zero=True),
    )
