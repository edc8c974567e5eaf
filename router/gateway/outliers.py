"""Which replica of a version fails more than the others: passive outlier detection. Decides; no I/O, no clock.

Theory of operation. A worker reports the end of each attempt at a replica. Two kinds of failures are distinguished:

- *Hard* failures: a connection that the replica closed before its response was complete, an invalid response, the
  scoring timeout, and responses with 502, 503 or 504. After the first one the replica is *avoided* for a moment that
  grows with each further one, so that the next request goes to another replica. After several in a row it is *ejected*.
- Other responses with a status of 400 or more may be due to the input. They count only for the rate of failures: a
  replica is ejected if its rate is far above that of the others, without the requests of the client that failed there
  most often. Two periods are compared: the last minute, which finds a replica that fails sometimes, and the time since
  the replica's last success, which finds within a few requests one that always fails. The worker gives back the slots
  that it holds there (`should_return_slots`). Otherwise it would keep using them, and not compare with the others.

An ejected replica gets no requests. Its time grows with each ejection. Then one request is its *trial*: if it
succeeds, the replica is used again; otherwise it is ejected for longer.

What limits this, in the order of importance:

- At least one replica that gets new requests is neither avoided nor ejected, and at most a share of them is ejected.
  Both hold for the state after a decision, and again whenever replicas are added or removed (`to_readmit`).
- If most of the other replicas fail as well, the cause is the model, its input or something that all depend on: none is
  ejected.
- If all failures in a row are those of one client that has not succeeded anywhere since, its input may be the cause.

Fewer timeouts than other failures lead to an ejection, as each costs a client the whole scoring timeout, holds a slot
for as long, and is not the answer of a server that is merely busy.

Sources: Envoy's outlier detection, Finagle's failure accrual and gRPC A50; their share is tested before an ejection,
which can eject all of three hosts (envoy#27066). Compiled by mypyc. Times are seconds of one monotonic clock.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Final, NamedTuple

from router.gateway.replica_health import (
    AVOIDED,
    CLOSED,
    EJECTED,
    HALF_OPEN,
    IN_USE,
    INVALID,
    ON_TRIAL,
    REFUSED,
    REFUSING,
    TIMEOUT,
    UNAVAILABLE,
    UNAVAILABLE_STATUSES,
    ReplicaHealth,
)
from router.model.replica_health import ReplicaHealthReport
from router.model.services import Version

FIRST_AVOIDANCE_SECONDS: Final = 0.1
_MAX_AVOIDANCE_SECONDS: Final = 5.0
_MAX_EJECTION_SECONDS: Final = 300.0
_WINDOW_SECONDS: Final = 30.0
"""All counts for the rates are halved this often."""
_RATE_TEST_SECONDS: Final = 1.0
_MIN_REQUESTS: Final = 20
"""Requests that a rate needs, of the replica and of all others together."""
_MIN_RUN: Final = 10
"""The same for the time since the replica's last success. HAProxy's `error-limit` has the same default."""
_RUN_TEST_SECONDS: Final = 0.1
_MIN_RATE_DIFFERENCE: Final = 0.2
_DEVIATIONS: Final = 3.0
"""By how many standard deviations a rate must differ from that of the others (99.9 % if all replicas are alike)."""
_MAX_CLIENTS: Final = 64
"""Clients remembered for each replica, and four times as many for a version."""
_MANY_CLIENTS: Final = b""


class Suspension(NamedTuple):
    """Send a replica no requests for some time. `reason` is for operators; empty if it is only avoided."""

    seconds: float
    reason: str


class OutlierDetector:
    """The replicas of one version, as one worker sees them."""

    __slots__ = (
        "_clients", "_healths", "_open", "_rate_tested_at", "_run_tested_at", "_settings", "_swept_at", "_totals",
        "_totals_at", "revision", "watching",
    )  # fmt: skip

    def __init__(self, settings: Version, now: float) -> None:
        self._settings = settings
        self._healths: Mapping[str, ReplicaHealth] = {}
        self._open: list[ReplicaHealth] = []  # those that get new requests unless they are avoided or ejected
        self._clients: dict[bytes, float] = {}  # when each has last succeeded; only while `watching`
        self._swept_at = now
        self._rate_tested_at = self._run_tested_at = self._totals_at = -math.inf
        self._totals = (0, 0)  # successes and failures of all replicas at `_totals_at`
        self.watching = False
        """True while a replica has failed and not succeeded since, or is ejected: successes are to be reported too."""
        self.revision = 0
        """Changes with each change that operators see."""

    # Settings and replicas.

    def change(self, settings: Version) -> None:
        """Apply other settings. Call `to_readmit` afterwards."""
        self._settings = settings

    def set_replicas(self, healths: Mapping[str, ReplicaHealth], open_ids: Collection[str]) -> None:
        """Make `healths` the complete set, by replica. `open_ids` of them are ready and not cordoned. Call `to_readmit`
        afterwards."""
        if healths.keys() != self._healths.keys():
            self.revision += 1
            for health in healths.values():
                health.run_successes = -1  # totals of other replicas cannot be compared
        self._healths = healths
        self._open = [health for replica_id, health in healths.items() if replica_id in open_ids]

    def report(self) -> dict[str, ReplicaHealthReport]:
        """Return what operators see of the replicas that have failed. It changes with `revision`."""
        return {
            each.replica_id: ReplicaHealthReport(
                errors=each.errors,
                last_error=each.last_error,
                last_probe=each.last_probe,
                is_ejected=each.is_ejected,
                ejected_until=each.until if each.is_ejected else 0.0,
                ejections=each.ejections,
                server_error=each.server_error,
                reason=each.reason if each.is_ejected else "",
            )
            for each in self._healths.values()
            if each.errors or each.server_error
        }

    @property
    def ejected(self) -> int:
        """The number of ejected replicas, of those that are ready and not cordoned."""
        return sum(1 for each in self._open if each.is_ejected)

    @property
    def limit(self) -> int:
        """The most replicas that may be ejected: the share, but at least one, and never all."""
        count = len(self._open)
        share = count * self._settings.outlier_max_ejected_percent // 100
        return min(max(share, 1), max(count - 1, 0)) if self._settings.outlier_max_ejected_percent else 0

    def has_in_use(self, except_for: ReplicaHealth | None = None) -> bool:
        """True if a replica gets requests without restriction, other than `except_for`."""
        return any(each.state == IN_USE and each is not except_for for each in self._open)

    # Ends of attempts.

    def on_failure(self, health: ReplicaHealth, kind: str, client: bytes, now: float) -> Suspension | None:
        """Count a hard failure. Return for how long the replica is to get no requests, if so. The state is set."""
        self.count_error(health, kind)
        self._count_failure(health, client, now)
        if not health.streak:
            health.streak_started_at = now
            health.streak_client = client
        elif health.streak_client != client:
            health.streak_client = None
        health.streak += 1
        health.timeouts_in_streak += kind == TIMEOUT
        self.watching = True
        settings = self._settings
        if not settings.outlier_detection or health.state in (EJECTED, REFUSING):
            return None
        if health.state in (HALF_OPEN, ON_TRIAL):
            return self._eject(health, f"it still fails: {_TEXTS[kind]}", now)
        if not self.has_in_use(except_for=health):
            return None
        others_fail = self._most_others_fail(health)
        reached = (
            health.streak >= settings.outlier_consecutive_failures
            or health.timeouts_in_streak >= settings.outlier_consecutive_timeouts
        )
        if reached and not others_fail and not self._may_be_input(health) and self._may_eject(health):
            return self._eject(health, f"{health.streak} failures in a row, the last one: {_TEXTS[kind]}", now)
        return self._avoid(health, 1 if others_fail else health.streak, now)

    def on_response(self, health: ReplicaHealth, status: int, client: bytes, now: float) -> Suspension | None:
        """Count a complete response, with its status. To be called for each one with a status of 400 or more, and for
        all while `watching`; a success must have been added to `health.successes`. Returns as `on_failure`."""
        if status >= 500 and not health.server_error:
            health.server_error = status
            self.revision += 1
        if status in UNAVAILABLE_STATUSES:
            return self.on_failure(health, UNAVAILABLE, client, now)
        if health.state != ON_TRIAL:  # else see `on_trial_responds`
            health.streak = health.timeouts_in_streak = 0
        if status < 400:
            self._clients[client] = now
            if len(self._clients) > 4 * _MAX_CLIENTS:
                del self._clients[next(iter(self._clients))]
            return None
        self._count_failure(health, client, now)
        if not self._settings.outlier_detection or health.state not in (IN_USE, AVOIDED):
            return None
        return self._test_run(health, now) or self._test_rate(health, now)

    def should_return_slots(self, health: ReplicaHealth, now: float) -> bool:
        """True if the slots held at a replica should be given back after a response with a status of 400 or more."""
        if (
            not self._settings.outlier_detection
            or health.state != IN_USE
            or now - health.returned_at < FIRST_AVOIDANCE_SECONDS
            or not self.has_in_use(except_for=health)
        ):
            return False
        health.returned_at = now
        return True

    def on_trial_responds(self, health: ReplicaHealth, status: int, now: float) -> Suspension | None:
        """Decide a trial whose response has begun. Returns as `on_failure`; None if the replica is used again or, by
        `HALF_OPEN`, gets another trial."""
        if status in UNAVAILABLE_STATUSES:
            return None  # `on_response` follows
        if health.by_rate and status >= 400:
            if status < 500 and status != 429:
                self._set_state(health, HALF_OPEN)  # it may be due to the input
                return None
            return self._eject(health, f"it still fails: status {status}", now, by_rate=True)
        self._set_state(health, IN_USE)
        health.readmitted_at = now
        # A failure before the end of this response ejects it again.
        health.streak = self._settings.outlier_consecutive_failures - 1
        health.timeouts_in_streak = self._settings.outlier_consecutive_timeouts - 1
        health.streak_client = None
        health.successes = health.failures = 0
        health.failures_by_client.clear()
        return None

    def count_error(self, health: ReplicaHealth, kind: str) -> None:
        """Count a failure for operators."""
        health.errors += 1
        health.last_error = kind
        self.revision += 1

    # Changes by time and by the other replicas.

    def on_refused(self, health: ReplicaHealth) -> None:
        """Note that a replica refuses connections."""
        self._set_state(health, REFUSING)

    def on_time_over(self, health: ReplicaHealth) -> None:
        """End an avoidance; give an ejected replica its trial."""
        self._set_state(health, HALF_OPEN if health.state == EJECTED else IN_USE)

    def begin_trial(self, health: ReplicaHealth, request: object, now: float) -> None:
        """Note that `request` is sent to a `HALF_OPEN` replica."""
        health.trial, health.trial_started_at = request, now
        self._set_state(health, ON_TRIAL)

    def on_trial_without_result(self, health: ReplicaHealth) -> None:
        """Note that the trial has ended by something other than the replica: there will be another one."""
        self._set_state(health, HALF_OPEN)

    def to_readmit(self) -> list[ReplicaHealth]:
        """Set replicas in use that must not be avoided or ejected any more, and return them: because detection is off,
        or no other replica is in use, or too many are avoided or ejected, as some were removed."""
        by_end = sorted((each for each in self._open if each.state not in (IN_USE, REFUSING)), key=_end)
        ejected = [each for each in by_end if each.is_ejected]
        avoided = [each for each in by_end if not each.is_ejected]
        if not self._settings.outlier_detection:
            found = by_end
        else:
            limit = self.limit
            found = ejected[: max(0, len(ejected) - limit)]
            found += avoided[: max(0, len(avoided) - max(1, limit - len(ejected)))]
            if by_end and not found and not self.has_in_use():
                found = (avoided or ejected)[:1]
        for each in found:
            self._set_state(each, IN_USE)
        return found

    def sweep(self, now: float) -> list[ReplicaHealth]:
        """Halve old counts. Return replicas whose trial had no result for longer than the scoring timeout; they get
        another one. To be called about once a second."""
        if now - self._swept_at >= _WINDOW_SECONDS:
            self._swept_at = now
            for each in self._healths.values():
                each.successes //= 2
                if each.failures:
                    halved = {client: count // 2 for client, count in each.failures_by_client.items() if count > 1}
                    each.failures_by_client = halved
                    each.failures = sum(halved.values())
        if not self.watching:
            return []
        if not any(each.streak or each.state != IN_USE for each in self._healths.values()):
            self.watching = False
            self._clients.clear()
            return []
        oldest = now - self._settings.scoring_timeout_ms / 1000 - 1.0
        stuck = [each for each in self._healths.values() if each.state == ON_TRIAL and each.trial_started_at < oldest]
        for each in stuck:
            self._set_state(each, HALF_OPEN)
        return stuck

    # Decisions.

    def _set_state(self, health: ReplicaHealth, state: int) -> None:
        health.state = state
        if state != ON_TRIAL:
            health.trial = None
        self.revision += 1

    def _avoid(self, health: ReplicaHealth, failures: int, now: float) -> Suspension:
        seconds = min(FIRST_AVOIDANCE_SECONDS * 2.0 ** min(failures - 1, 16), _MAX_AVOIDANCE_SECONDS)
        health.until = now + seconds
        self._set_state(health, AVOIDED)
        return Suspension(seconds, "")

    def _eject(self, health: ReplicaHealth, text: str, now: float, *, by_rate: bool = False) -> Suspension:
        base = self._settings.outlier_ejection_seconds
        if health.state == IN_USE or health.state == AVOIDED:
            healthy_seconds = now - health.readmitted_at
            forgiven = healthy_seconds / max(health.last_ejection, base)
            health.ejections = max(0, health.ejections - int(min(forgiven, 1e6)))
        health.ejections += 1
        seconds = min(base * 2.0 ** min(health.ejections - 1, 32), max(base, _MAX_EJECTION_SECONDS))
        health.last_ejection = seconds
        health.until = now + seconds
        health.reason = text
        health.by_rate = by_rate
        self.watching = True
        self._set_state(health, EJECTED)
        return Suspension(seconds, text)

    def _may_eject(self, health: ReplicaHealth) -> bool:
        """True if one more replica may be ejected."""
        return health in self._open and self.ejected < self.limit

    def _may_eject_by_rate(self, health: ReplicaHealth) -> bool:
        """True if one more replica may be ejected, and another one is in use."""
        return self._may_eject(health) and self.has_in_use(except_for=health)

    def _most_others_fail(self, health: ReplicaHealth) -> bool:
        """True if more of the other replicas fail than not. Ejected ones do not count."""
        failing = healthy = 0
        for each in self._open:
            if each is health or each.is_ejected:
                continue
            if each.streak or each.state == REFUSING:
                failing += 1
            else:
                healthy += 1
        return failing > healthy

    def _may_be_input(self, health: ReplicaHealth) -> bool:
        """True if one client has had all failures in a row, and has not succeeded anywhere since the first one."""
        client = health.streak_client
        return client is not None and self._clients.get(client, -math.inf) <= health.streak_started_at

    # Rates of failures.

    def _count_failure(self, health: ReplicaHealth, client: bytes, now: float) -> None:
        _add(health.failures_by_client, client)
        health.failures += 1
        if health.run_successes != health.successes:
            health.run_successes = health.successes
            health.run_failures = 0
            health.run_by_client.clear()
            if now - self._totals_at >= _RUN_TEST_SECONDS:
                self._totals_at = now
                self._totals = self._sum()
            health.run_base = self._totals
        _add(health.run_by_client, client)
        health.run_failures += 1

    def _sum(self) -> tuple[int, int]:
        """Return the successes and failures of all replicas."""
        healths = self._healths.values()
        return sum(each.successes for each in healths), sum(each.failures for each in healths)

    def _test_run(self, health: ReplicaHealth, now: float) -> Suspension | None:
        """Eject a replica that has failed since its last success, while the others have not."""
        failures = health.run_failures - _worst(health.run_by_client)
        if failures < _MIN_RUN or now - self._run_tested_at < _RUN_TEST_SECONDS:
            return None
        self._run_tested_at = now
        successes, all_failures = self._sum()
        other_failures = max(0, all_failures - health.run_base[1] - health.run_failures)
        other_requests = max(0, successes - health.run_base[0]) + other_failures
        if other_requests < _MIN_RUN or not _differs(failures, failures, other_failures, other_requests):
            return None
        if not self._may_eject_by_rate(health):
            return None
        text = (
            f"its last {health.run_failures} responses are failures, {other_failures / other_requests:.0%} of those "
            "of the others meanwhile"
        )
        return self._eject(health, text, now, by_rate=True)

    def _test_rate(self, health: ReplicaHealth, now: float) -> Suspension | None:
        """Eject a replica that fails far more often than the others."""
        if now - self._rate_tested_at < _RATE_TEST_SECONDS or len(health.failures_by_client) < 2:
            return None
        self._rate_tested_at = now
        failures = health.failures - _worst(health.failures_by_client)
        requests = health.successes + failures
        others = [each for each in self._open if each is not health and not each.is_ejected]
        other_failures = sum(each.failures for each in others)
        other_requests = sum(each.successes + each.failures for each in others)
        if requests < _MIN_REQUESTS or other_requests < _MIN_REQUESTS:
            return None
        if not _differs(failures, requests, other_failures, other_requests) or not self._may_eject_by_rate(health):
            return None
        text = (
            f"{failures / requests:.0%} of its responses are failures, "
            f"{other_failures / other_requests:.0%} of those of the others"
        )
        return self._eject(health, text, now, by_rate=True)


_TEXTS: Final[dict[str, str]] = {
    REFUSED: "it refused a connection",
    CLOSED: "it closed the connection before the response was complete",
    INVALID: "an invalid response",
    TIMEOUT: "no response within scoring_timeout_ms",
    UNAVAILABLE: "status 502, 503 or 504",
}


def _add(counts: dict[bytes, int], client: bytes) -> None:
    if client not in counts and len(counts) >= _MAX_CLIENTS:
        client = _MANY_CLIENTS
    counts[client] = counts.get(client, 0) + 1


def _worst(counts: dict[bytes, int]) -> int:
    """Return the failures of the client that failed most often."""
    return max((count for client, count in counts.items() if client != _MANY_CLIENTS), default=0)


def _differs(failures: int, requests: int, other_failures: int, other_requests: int) -> bool:
    """True if a rate of failures is far above that of the others: a test of two proportions, pooled variance."""
    rate, other_rate = failures / requests, other_failures / other_requests
    common = (failures + other_failures) / (requests + other_requests)
    deviation = math.sqrt(common * (1 - common) * (1 / requests + 1 / other_requests))
    return rate - other_rate > max(_MIN_RATE_DIFFERENCE, _DEVIATIONS * deviation)


def _end(health: ReplicaHealth) -> float:
    return health.until
