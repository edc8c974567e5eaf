"""`azureml-fe plan`: computes how many replicas a load needs, and which size of the router. No I/O."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from router.scaling.autoscaler import replicas_for
from router.scaling.queueing import erlang_c, slots_for, wait_probability

REQUESTS_PER_CORE = 5000.0
"""Planned number of small requests per second for each CPU of the router. It is a third of the rate in
benchmarks/README.md. The rest is reserved for larger bodies, TLS, tokens and bursts."""

ROUTER_PODS = 3
"""Number of router pods, as in Azure ML's own router. One pod can fail while another is replaced."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The replicas and the router size that a load needs. Times are in seconds, shares from 0 to 1."""

    rps: float
    seconds: float
    target: float
    max_concurrent: int
    wait_seconds: float
    in_flight: float
    """Mean number of requests in flight."""
    replicas: int
    """Number of replicas by the published formula of Azure ML."""
    utilization: float
    waits: float
    """Share of requests that must wait for a slot."""
    refused: float
    """Share of requests that wait longer than `wait_seconds`."""
    accepted_refusals: float
    fewest_replicas: int
    """The smallest number of replicas that refuse no more than `accepted_refusals`."""
    router_cores: float
    router_pods: int

    def as_dict(self) -> dict[str, Any]:
        """Return the plan as JSON-able data."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Return the plan as readable lines."""
        per_replica = f"{_count(self.max_concurrent, 'request')} at a time each"
        millis = f"{self.wait_seconds * 1e3:g} ms"
        fewest_utilization = self.in_flight / (self.fewest_replicas * self.max_concurrent)
        formula = f"ceil({self.rps:g} x {self.seconds:g} / {self.target:g} / {self.max_concurrent})"
        accepted = _percent(self.accepted_refusals)
        fewest = _count(self.fewest_replicas, "replica")
        cores = f"{self.router_cores:g} CPU"
        pod = f"{self.router_cores / (self.router_pods - 1):.1f} CPU"
        settings = {
            "autoscale_max_replicas": f"{self.replicas} or more",
            "autoscale_target_utilization": f"{self.target * 100:g}",
            "replica_max_concurrent_requests": f"{self.max_concurrent}",
            "max_request_wait_time": f"{self.wait_seconds * 1e3:g}",
        }
        return [
            f"load: {self.rps:g} requests/s of {self.seconds:g} s are {self.in_flight:g} in flight on average",
            f"replicas: {self.replicas} = {formula}, {per_replica}",
            f"  utilization: {_percent(self.utilization)}",
            f"  requests that wait for a slot: {_percent(self.waits)}",
            f"  requests refused with 503 after waiting {millis}: {_percent(self.refused)}",
            f"minimum: {fewest} at {_percent(fewest_utilization)} utilization, if {accepted} may be refused",
            f"router: {cores} for small requests; {self.router_pods} pods of {pod} survive the loss of one",
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
    """Compute the plan for a load. Raises ValueError if the load is too large."""
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
        refused=wait_probability(slots, load, seconds, wait_seconds),
        accepted_refusals=accepted_refusals,
        fewest_replicas=fewest // max_concurrent,
        router_cores=max(0.1, math.ceil(rps / REQUESTS_PER_CORE * 10) / 10),
        router_pods=ROUTER_PODS,
    )


def _percent(share: float) -> str:
    """Format a share; `0 %` only if it is exactly 0."""
    if 0 < share < 0.0001:
        return "less than 0.01 %"
    return f"{share * 100:.2f}".rstrip("0").rstrip(".") + " %"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")
