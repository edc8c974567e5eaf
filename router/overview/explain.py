"""`/explain/<request-id>`: what became of one request, and why. Turns an entry of a worker's journal into a story.

Lives here: the shape of the answer and its sentences. Must not live here: what is remembered (`telemetry.journal`).
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import Any

from router.overview.history import Moment
from router.overview.overview import Overview
from router.scaling.autoscaler import Observation
from router.telemetry.journal import Entry
from router.telemetry.log import rfc3339
from router.telemetry.metrics import answered_by

_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")  # the router's own, and clients' as they are kept
_REPLICAS_TOLD = 100  # the busiest; a version may have thousands, and other pods pass this on


async def explain(overview: Overview, request_id: str) -> dict[str, Any] | None:
    """All that is known of a request; None if no worker of this pod remembers it."""
    if overview.workers is None or not _ID.fullmatch(request_id):
        return None
    found = await overview.workers.explain(request_id.encode())
    if found is None:
        return None
    worker, entry = found
    key = (entry.service, entry.version)
    moment = overview.history.at(entry.began, key)
    observed = _before(overview.loop.history(key), entry.began)
    now_wall = time.time() - time.monotonic()
    return {
        "request_id": entry.request_id.decode(),
        "client_request_id": entry.client_id.decode() or None,
        "time": rfc3339(now_wall + entry.began),
        "service": entry.service or None,
        "version": entry.version or None,
        "pod": overview.peering.own_id,
        "worker": worker,
        "status": entry.status,
        "error": entry.slug or None,
        "answered_by": answered_by(entry.version, str(entry.status), entry.slug),
        "story": list(_story(entry, moment, observed)),
        "timings_ms": _timings(entry),
        "queue": _queue(entry),
        "choice": _choice(entry),
        "bytes": {"request": entry.request_bytes, "answer": entry.response_bytes},
        "version_then": None if moment is None else _moment(moment),
        "autoscaler_then": None if observed is None else _observation(observed, entry.began),
        "autoscaler_reason_now": decision.reason if (decision := overview.loop.decision(key)) is not None else None,
    }


def _before(history: tuple[Observation, ...], when: float) -> Observation | None:
    return next((observed for observed in reversed(history) if observed.at <= when), None)


def _timings(entry: Entry) -> dict[str, float | None]:
    sent, answered = entry.sent, entry.answered
    return {
        "authentication": _ms(entry.checked - entry.began) if entry.checked else None,
        "queue": _ms(entry.queued_seconds),
        "connect": _ms(entry.connected_at - entry.granted) if sent else None,
        "router": _ms(sent - entry.began - entry.queued_seconds) if sent else None,
        "replica_first_byte": _ms(answered - sent) if sent and answered else None,
        "answer": _ms(entry.ended - answered) if answered else None,
        "total": _ms(entry.ended - entry.began),
    }


def _queue(entry: Entry) -> dict[str, Any] | None:
    if not entry.position:
        return None
    return {
        "position_at_arrival": entry.position,
        "replicas_at_arrival": [
            {"replica": replica, "in_flight_of_this_worker": busy, "closed": closed}
            for replica, busy, closed in entry.considered
        ],
    }


def _choice(entry: Entry) -> dict[str, Any] | None:
    if not entry.replica:
        return None
    return {
        "replica": entry.replica,
        "in_flight_of_this_worker": entry.beside,
        "attempts": entry.attempts + 1,
        "new_connection": entry.connected_at > entry.granted,
    }


def _moment(moment: Moment) -> dict[str, Any]:
    busiest = sorted(moment.busy.items(), key=lambda each: each[1], reverse=True)[:_REPLICAS_TOLD]
    return {
        "age_seconds": round(moment.age, 3),
        "in_flight_by_replica": dict(sorted(busiest)),
        "queued": moment.waiting,
        "leases_idle": moment.idle,
    }


def _observation(observed: Observation, when: float) -> dict[str, Any]:
    return {
        "since_seconds": round(when - observed.at, 3),
        "replicas": observed.replicas,
        "busy": round(observed.busy, 3),
        "queued": round(observed.queued, 3),
        "refused": round(observed.refused, 3),
        "utilization": round(observed.utilization, 4),
        "desired": observed.desired,
    }


def _story(entry: Entry, moment: Moment | None, observed: Observation | None) -> Iterator[str]:
    """The same for people, in the order in which it happened."""
    if moment is not None:
        where = f" at {len(moment.busy)} replicas" if moment.busy else ""
        yield (
            f"When it came, {sum(moment.busy.values())} requests were in flight{where} and "
            f"{moment.waiting} waited, as workers had reported {moment.age * 1e3:.0f} ms before."
        )
    if entry.position:
        yield (
            f"This worker held no free slot of the {len(entry.considered)} replicas that it knew: it queued at place "
            f"{entry.position} and waited {entry.queued_seconds * 1e3:.1f} ms."
        )
    elif entry.sent:
        yield "A slot was free, so it did not wait."
    if entry.replica and entry.sent:
        beside = f", which had {entry.beside - 1} other requests of this worker" if entry.beside > 1 else ""
        yield f"It was sent to {entry.replica}{beside}."
    if entry.attempts:
        yield f"It was sent again {entry.attempts} times, as it had provably not run before."
    yield _end(entry)
    if entry.slug in ("overloaded", "no-ready-replicas") and observed is not None:
        yield (
            f"The autoscaler then wanted {observed.desired} replicas and had {observed.replicas}: "
            f"{observed.busy:.2f} busy, {observed.queued:.2f} queued, {observed.refused:.2f} refused."
        )


def _end(entry: Entry) -> str:
    total = (entry.ended - entry.began) * 1e3
    match entry.slug:
        case "":
            return f"The replica answered {entry.status} after {total:.1f} ms in all."
        case "unauthorized":
            return "It had no valid key or token for this service: 401."
        case "unknown-service":
            return "No service, or no version of it, has the name that it asked for: 404."
        case "client-closed":
            return f"The client left after {total:.1f} ms."
        case "overloaded":
            why = "No slot became free in time" if entry.position else "The queue was full"
            return f"{why}: 503 after {total:.1f} ms."
        case "no-ready-replicas":
            return f"No replica was ready: 503 after {total:.1f} ms."
        case "scoring-timeout":
            return f"The replica was silent for longer than scoring_timeout_ms: ended after {total:.1f} ms."
        case "replica-closed":
            return f"The replica closed the connection, or refused it, before its answer was complete: {total:.1f} ms."
        case "replica-error":
            return f"The replica answered 500, passed on as 502, after {total:.1f} ms."
    return f"It ended with {entry.status} {entry.slug} after {total:.1f} ms."


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 3)
