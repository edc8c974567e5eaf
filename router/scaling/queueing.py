"""How long requests wait for a slot, by queueing theory: what `azureml-fe plan` tells. No I/O.

The model is M/M/c: requests come at random (Poisson), their times vary a lot (exponential), they wait in one queue, as
they do here. Real models' times vary less, which makes waits shorter, so that this is on the safe side; arrivals in
bursts make them longer.
"""

from __future__ import annotations

import math

LARGEST_SLOTS = 1_000_000


def erlang_c(slots: int, load: float) -> float:
    """The chance that a request finds no slot free. `load`: requests in flight on average, if all had a slot at once.

    1.0 where the load is not below the slots, for then the queue grows for ever. Raises `ValueError` for a negative
    number, or more slots than `LARGEST_SLOTS`.
    """
    if not 0 <= slots <= LARGEST_SLOTS or not 0 <= load < math.inf:
        raise ValueError(f"{slots} slots, load {load}; allowed: 0 to {LARGEST_SLOTS} slots, a load of 0 or more")
    if load >= slots:
        return 1.0
    # Erlang B by its recursion, which neither overflows nor cancels, whatever the size; then C from B.
    blocked = 1.0
    for servers in range(1, slots + 1):
        blocked = load * blocked / (servers + load * blocked)
    return blocked / (1 - load / slots * (1 - blocked))


def waits_longer(slots: int, load: float, service_seconds: float, limit_seconds: float) -> float:
    """The chance that a request waits for a slot for longer than `limit_seconds`."""
    if load >= slots:
        return 1.0
    return erlang_c(slots, load) * math.exp(-(slots - load) * limit_seconds / service_seconds)


def slots_for(load: float, service_seconds: float, limit_seconds: float, chance: float, per_replica: int) -> int:
    """The fewest slots, a multiple of `per_replica`, for which a request waits longer than the limit with at most this
    chance. Raises `ValueError` where that would be more than `LARGEST_SLOTS`."""
    fewest = math.floor(load / per_replica) + 1  # replicas
    most = fewest
    while waits_longer(most * per_replica, load, service_seconds, limit_seconds) > chance:
        most *= 2
    while fewest < most:  # the chance only falls with more slots
        middle = (fewest + most) // 2
        if waits_longer(middle * per_replica, load, service_seconds, limit_seconds) > chance:
            fewest = middle + 1
        else:
            most = middle
    return most * per_replica
