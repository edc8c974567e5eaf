"""`/explain/<request-id>`: explains what happened to one request, from the entry in a worker's journal.

Contains: the fields of the response and its sentences. Does not contain: what the journal records
(`telemetry.journal`), and asking other pods (`explain_broker`).
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import Any

from router.admin.history import PastLoad
from router.admin.overview import Overview
from router.admin.replica_health import Ejection
from router.scaling.autoscaler import Observation
from router.telemetry.journal import Abandonment, Entry
from router.telemetry.log import rfc3339
from router.telemetry.metrics import answered_by

_REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")  # ids of the router, and ids of clients as the journal records them
_MAX_REPLICAS = 100
"""Number of listed replicas, the busiest ones. A version may have thousands, and pods send the response to each
other."""


async def explain(overview: Overview, request_id: str) -> dict[str, Any] | None:
    """Return the explanation of a request; None if no worker of this pod has a journal entry of it."""
    if not _REQUEST_ID.fullmatch(request_id):
        return None
    found = await overview.workers.explain(request_id.encode())
    if found is None:
        return None
    worker, entry = found
    key = (entry.service, entry.version)
    load = overview.activity.history.at(entry.started_at, key)
    observation = _last_before(overview.loop.history(key), entry.started_at)
    ejections = overview.activity.replica_health.ejections_during(key, entry.started_at, entry.ended_at)
    clock_offset = time.time() - time.monotonic()
    return {
        "request_id": entry.request_id.decode(),
        "client_request_id": entry.client_request_id.decode() or None,
        "client": _text(entry.client),
        "protocol": entry.protocol,
        "method": _text(entry.method),
        "path": _text(entry.path) or None,
        "time": rfc3339(clock_offset + entry.started_at),
        "service": entry.service or None,
        "version": entry.version or None,
        "pod": overview.ledger_dispatcher.own_id,
        "worker": worker,
        "status": entry.status,
        "error": entry.error_code or None,
        "answered_by": answered_by(entry.version, str(entry.status), entry.error_code),
        "story": [*_story(entry, load, observation), *map(_ejection_sentence, ejections)],
        "timings_ms": _timings(entry),
        "queue": _queue(entry),
        "choice": _choice(entry),
        "abandoned": _abandonment(entry),
        "bytes": {"request": entry.request_bytes, "answer": entry.response_bytes},
        "version_then": None if load is None else _load(load),
        "autoscaler_then": None if observation is None else _observation(observation, entry.started_at),
        "autoscaler_reason_now": decision.reason if (decision := overview.loop.decision(key)) is not None else None,
    }


def _text(value: bytes) -> str:
    return value.decode("ascii", "backslashreplace")


def _last_before(history: tuple[Observation, ...], time: float) -> Observation | None:
    return next((observation for observation in reversed(history) if observation.at <= time), None)


def _ejection_sentence(ejection: Ejection) -> str:
    return f"Meanwhile {ejection.worker} sent {ejection.replica} no requests, as it had ejected it: {ejection.reason}."


def _timings(entry: Entry) -> dict[str, float | None]:
    sent_at, response_started_at = entry.sent_at, entry.response_started_at
    return {
        "authentication": _ms(entry.authenticated_at - entry.started_at) if entry.authenticated_at else None,
        "body": _ms(entry.body_seconds),
        "queue": _ms(entry.queued_seconds),
        "connect": _ms(entry.connected_at - entry.slot_acquired_at) if sent_at else None,
        "router": _ms(sent_at - entry.started_at - entry.queued_seconds - entry.body_seconds) if sent_at else None,
        "replica_first_byte": _ms(response_started_at - sent_at) if sent_at and response_started_at else None,
        "answer": _ms(entry.ended_at - response_started_at) if response_started_at else None,
        "total": _ms(entry.ended_at - entry.started_at),
    }


def _queue(entry: Entry) -> dict[str, Any] | None:
    if not entry.queue_position:
        return None
    return {
        "position_at_arrival": entry.queue_position,
        "replicas_at_arrival": [
            {
                "replica": replica,
                "in_flight_of_this_worker": in_flight,
                "closed": closed,
                "abandoned_of_this_worker": abandoned,
                "suspect": suspect,
            }
            for replica, in_flight, closed, abandoned, suspect in entry.replicas_at_arrival
        ],
    }


def _choice(entry: Entry) -> dict[str, Any] | None:
    if not entry.replica:
        return None
    return {
        "replica": entry.replica,
        "in_flight_of_this_worker": entry.in_flight_at_dispatch,
        "attempts": entry.retries + 1,
        "new_connection": entry.connected_at > entry.slot_acquired_at,
        "abandoned_of_this_worker": entry.abandoned_at_dispatch,
        "suspect": entry.suspect_at_dispatch,
    }


def _abandonment(entry: Entry) -> dict[str, Any] | None:
    abandonment = entry.abandonment
    if abandonment is None:
        return None
    ended_at, end = abandonment.ended[0] if abandonment.ended else (None, None)
    return {
        "handling": abandonment.handling,
        "ended_by": end,
        "kept_ms": None if ended_at is None else _ms(ended_at - abandonment.at),
    }


def _load(load: PastLoad) -> dict[str, Any]:
    busiest = sorted(load.in_flight.items(), key=lambda each: each[1], reverse=True)[:_MAX_REPLICAS]
    return {
        "age_seconds": round(load.age, 3),
        "in_flight_by_replica": dict(sorted(busiest)),
        "abandoned": sum(load.abandoned.values()),
        "queued": load.queued,
        "leases_idle": load.idle_leases,
    }


def _observation(observation: Observation, time: float) -> dict[str, Any]:
    return {
        "since_seconds": round(time - observation.at, 3),
        "replicas": observation.replicas,
        "busy": round(observation.busy, 3),
        "queued": round(observation.queued, 3),
        "refused": round(observation.refused, 3),
        "utilization": round(observation.utilization, 4),
        "desired": observation.desired,
    }


def _story(entry: Entry, load: PastLoad | None, observation: Observation | None) -> Iterator[str]:
    """Yield the events in the order in which they happened, as sentences."""
    if load is not None:
        replicas = f" at {len(load.in_flight)} replicas" if load.in_flight else ""
        yield (
            f"When the request arrived, {sum(load.in_flight.values())} requests were in flight{replicas} and "
            f"{load.queued} were queued, according to reports of workers {load.age * 1e3:.0f} ms earlier."
        )
    if entry.body_seconds:
        yield f"Its body was received for {entry.body_seconds * 1e3:.1f} ms, during which it needed no slot."
    if entry.queue_position:
        yield (
            f"This worker had no free slot at any of the {len(entry.replicas_at_arrival)} replicas: the request was "
            f"queued at position {entry.queue_position} and waited {entry.queued_seconds * 1e3:.1f} ms."
        )
    elif entry.sent_at:
        yield "A slot was free, so the request did not wait."
    if entry.replica and entry.sent_at:
        others = entry.in_flight_at_dispatch - 1
        yield f"It was sent to {entry.replica}" + (f", with {others} other requests of this worker." if others else ".")
        if entry.abandoned_at_dispatch:
            yield f"{entry.abandoned_at_dispatch} abandoned requests of this worker held slots there."
        if entry.suspect_at_dispatch:
            yield "That replica had suspect slots: it may still have been processing abandoned requests."
    if entry.retries:
        yield f"It was retried {entry.retries} times, since no replica had started to process it."
    yield _ending(entry)
    if entry.abandonment is not None:
        yield _abandonment_story(entry.abandonment)
    if entry.error_code in ("overloaded", "no-ready-replicas") and observation is not None:
        yield (
            f"The autoscaler then wanted {observation.desired} replicas and had {observation.replicas}: "
            f"{observation.busy:.2f} busy, {observation.queued:.2f} queued, {observation.refused:.2f} refused."
        )


def _abandonment_story(abandonment: Abandonment) -> str:
    match abandonment.handling:
        case "suspect":
            return (
                "Its connection to the replica was closed. The replica may have continued the request, so the slot "
                "became suspect."
            )
        case "kept":
            kept = "The replica finishes such requests (cancellation: none), so the slot stayed in use"
            if not abandonment.ended:
                return f"{kept}, and it is still in use."
            ended_at, end = abandonment.ended[0]
            ends = {"response": "the response arrived", "closed": "the connection was closed"}
            reason = ends.get(end, "abandoned_request_timeout_ms had passed")
            return f"{kept} until {reason}, {(ended_at - abandonment.at) * 1e3:.1f} ms later."
    return "Its connection to the replica was closed, and the slot was free."


def _ending(entry: Entry) -> str:
    total = (entry.ended_at - entry.started_at) * 1e3
    match entry.error_code:
        case "":
            return f"The replica responded with {entry.status} after {total:.1f} ms in total."
        case "unauthorized":
            return "It had no valid key or token for this service: 401."
        case "unknown-service":
            return "There is no service, or no version of it, with the requested name: 404."
        case "client-closed":
            return f"The client closed the connection after {total:.1f} ms."
        case "overloaded":
            reason = "No slot became free in time" if entry.queue_position else "The queue was full"
            return f"{reason}: 503 after {total:.1f} ms."
        case "no-ready-replicas":
            return f"No replica was ready: 503 after {total:.1f} ms."
        case "standby":
            return "This router observes, or another release of the router serves the namespace of the service: 503."
        case "scoring-timeout":
            return f"The replica sent nothing for longer than scoring_timeout_ms: ended after {total:.1f} ms."
        case "drain-timeout":
            return (
                "The replica was removed, and had not finished the request within replica_drain_seconds: the router "
                f"ended it after {total:.1f} ms."
            )
        case "replica-closed":
            return (
                "The replica refused the connection or closed it before its response was complete: "
                f"ended after {total:.1f} ms."
            )
        case "replica-error":
            return f"The replica responded with 500, forwarded as 502, after {total:.1f} ms."
    return f"It ended with {entry.status} {entry.error_code} after {total:.1f} ms."


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 3)
