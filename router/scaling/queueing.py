"""Estimates how long requests wait for a slot, by queueing theory, for `azureml-fe plan`. No I/O.

The model is M/M/c: requests arrive at random (Poisson), their service times vary a lot (exponential), and they wait in
one queue, as in the router. Service times of real models vary less, so real waits are shorter. Arrivals in bursts make
them longer.
"""

from __future__ import annotations

import math

MAX_SLOTS = 1_000_000


def erlang_c(slots: int, load: float) -> float:
    """Return the probability that a request finds no free slot (Erlang C).

    `load` is the mean number of requests in flight if each request got a slot at once. The result is 1.0 if the load is
    not below the number of slots, as the queue then grows without limit. Raises `ValueError` for a negative number and
    for more than `MAX_SLOTS` slots.
    """
    if not 0 <= slots <= MAX_SLOTS or not 0 <= load < math.inf:
        raise ValueError(f"{slots} slots, load {load}; allowed: 0 to {MAX_SLOTS} slots, a load of 0 or more")
    if load >= slots:
        return 1.0
    # Erlang B by recursion, which neither overflows nor loses precision at any size; then C from B.
    blocked = 1.0
    for servers in range(1, slots + 1):
        blocked = load * blocked / (servers + load * blocked)
    return blocked / (1 - load / slots * (1 - blocked))


def wait_probability(slots: int, load: float, service_seconds: float, limit_seconds: float) -> float:
    """Return the probability that a request waits for a slot for longer than `limit_seconds`."""
    if load >= slots:
        return 1.0
    return erlang_c(slots, load) * math.exp(-(slots - load) * limit_seconds / service_seconds)


def slots_for(load: float, service_seconds: float, limit_seconds: float, probability: float, per_replica: int) -> int:
    """Return the minimum number of slots with which a request waits longer than `limit_seconds` with `probability`.

    The result is a multiple of `per_replica`. Raises `ValueError` if it is more than `MAX_SLOTS`.
    """
    fewest = math.floor(load / per_replica) + 1  # replicas
    most = fewest
    while wait_probability(most * per_replica, load, service_seconds, limit_seconds) > probability:
        most *= 2
    while fewest < most:  # binary search: the probability falls with every slot
        middle = (fewest + most) // 2
        if wait_probability(middle * per_replica, load, service_seconds, limit_seconds) > probability:
            fewest = middle + 1
        else:
            most = middle
    return most * per_replica
