"""The encoding of the traffic of services in messages between peers (`wire`): one array for each service.

Errors have the names of their kinds, and durations their bounds, because another release may have others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from router.peers.wire_values import (
    as_count,
    as_counts,
    as_counts_by_name,
    as_histogram,
    as_number,
    as_rows,
    as_text,
    encode_histogram,
    malformed,
    optional,
)
from router.telemetry.histogram import DURATION_BOUNDS
from router.telemetry.traffic import ERROR_KINDS, ServiceTraffic, TimelinePoints


def encode_traffic(services: Mapping[str, ServiceTraffic]) -> list[list[object]]:
    """Return the traffic of services as rows."""
    return [
        [
            name, traffic.requests, encode_histogram(traffic.durations, DURATION_BOUNDS),
            {kind: count for kind, count in zip(ERROR_KINDS, traffic.errors, strict=True) if count},
            traffic.retries, traffic.request_bytes, traffic.response_bytes, traffic.busy_seconds,
            traffic.queued_seconds, traffic.needed, traffic.desired,
        ]
        for name, traffic in services.items()
    ]  # fmt: skip


def decode_traffic(value: object) -> dict[str, ServiceTraffic]:
    """Return the traffic of `encode_traffic`. Raises `WireError` if it is malformed."""
    return {as_text(row[0]): _decode_row(row) for row in as_rows(value)}


def decode_points(value: object) -> dict[str, TimelinePoints]:
    """Return points of services from rows of a name and two arrays. Raises `WireError` if they are malformed."""
    return {as_text(row[0]): TimelinePoints(as_counts(row[1]), as_counts(row[2])) for row in as_rows(value)}


def _decode_row(row: list[Any]) -> ServiceTraffic:
    errors = as_counts_by_name(row[3])
    busy_seconds, queued_seconds = as_number(row[7]), as_number(row[8])
    if not (busy_seconds >= 0 and queued_seconds >= 0):
        raise malformed("traffic is negative")
    return ServiceTraffic(
        requests=as_count(row[1]),
        durations=as_histogram(row[2], DURATION_BOUNDS),
        errors=tuple(errors.get(kind, 0) for kind in ERROR_KINDS),
        retries=as_count(row[4]),
        request_bytes=as_count(row[5]),
        response_bytes=as_count(row[6]),
        busy_seconds=busy_seconds,
        queued_seconds=queued_seconds,
        needed=optional(as_count)(row[9]),
        desired=optional(as_count)(row[10]),
    )
