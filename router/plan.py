"""`azureml-fe plan`: how many replicas a load needs, and how large the router must be. No I/O."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from router.scaling.autoscaler import replicas_for
from router.scaling.queueing import erlang_c, slots_for, waits_longer

REQUESTS_PER_CORE = 5000.0
"""Small requests per second that a CPU of the router is planned for: a third of what one forwards in
benchmarks/README.md, which leaves room for larger bodies, TLS, tokens and bursts."""

ROUTER_PODS = 3
"""The original's number; one may fail while another is replaced."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a load needs. Times in seconds, shares from 0 to 1."""

    rps: float
    seconds: float
    target: float
    max_concurrent: int
    wait_seconds: float
    in_flight: float
    """Requests in flight on average."""
    replicas: int
    """By the published formula."""
    utilization: float
    waits: float
    """The chance that a request finds no slot free."""
    refused: float
    """The chance that it waits longer than it may."""
    accepted_refusals: float
    fewest_replicas: int
    """With which no more than the accepted share is refused."""
    router_cores: float
    router_pods: int

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        return asdict(self)

    def lines(self) -> list[str]:
        """For people."""
        each = f"{_count(self.max_concurrent, 'request')} at a time each"
        millis = f"{self.wait_seconds * 1e3:g} ms"
        fewest = self.in_flight / (self.fewest_replicas * self.max_concurrent)
        formula = f"ceil({self.rps:g} x {self.seconds:g} / {self.target:g} / {self.max_concurrent})"
        accepted = _percent(self.accepted_refusals)
        at_least = f"{_count(self.fewest_replicas, 'replica')} for {accepted} answered 503, {_percent(fewest)} utilized"
        pod = f"{self.router_cores / (self.router_pods - 1):.1f} CPU"
        settings = {
            "autoscale_max_replicas": f"{self.replicas} or more",
            "autoscale_target_utilization": f"{self.target * 100:g}",
            "replica_max_concurrent_requests": f"{self.max_concurrent}",
            "max_request_wait_time": f"{self.wait_seconds * 1e3:g}",
        }
        return [
            f"load: {self.rps:g} requests/s of {self.seconds:g} s are {self.in_flight:g} in flight on average",
            f"replicas: {self.replicas} = {formula}, {each}",
            f"  utilized: {_percent(self.utilization)} of their slots",
            f"  a request waits at all: {_percent(self.waits)}",
            f"  a request waits longer than {millis}, and is answered 503: {_percent(self.refused)}",
            f"at least: {at_least}, with nothing to spare",
            f"router: {self.router_cores:g} CPU for small requests; {self.router_pods} pods of {pod}, one to lose",
            "settings: " + ", ".join(f"{name}: {value}" for name, value in settings.items()),
        ]


def plan(
    *,
    rps: float,
    seconds: float,
    target_percent: float,
    max_concurrent: int,
    wait_seconds: float,
    accepted_refusals: float,
) -> Plan:
    """What a load needs. Raises `ValueError` for one that is too large to plan for."""
    replicas = replicas_for(rps, seconds, target_percent, max_concurrent)
    load = rps * seconds
    slots = replicas * max_concurrent
    fewest = slots_for(load, seconds, wait_seconds, accepted_refusals, max_concurrent)
    return Plan(
        rps=rps,
        seconds=seconds,
        target=target_percent / 100,
        max_concurrent=max_concurrent,
        wait_seconds=wait_seconds,
        in_flight=round(load, 6),
        replicas=replicas,
        utilization=load / slots,
        waits=erlang_c(slots, load),
        refused=waits_longer(slots, load, seconds, wait_seconds),
        accepted_refusals=accepted_refusals,
        fewest_replicas=fewest // max_concurrent,
        router_cores=max(0.1, math.ceil(rps / REQUESTS_PER_CORE * 10) / 10),
        router_pods=ROUTER_PODS,
    )


def _percent(share: float) -> str:
    """`0 %` is said only of what is impossible."""
    if 0 < share < 0.0001:
        return "less than 0.01 %"
    return f"{share * 100:.2f}".rstrip("0").rstrip(".") + " %"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")
