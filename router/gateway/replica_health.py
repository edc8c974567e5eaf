"""What one worker knows of one replica: its state, its failures, and its ejections. Data only.

Does not contain: the effects of that (`outliers`, `suspensions`). Compiled by mypyc. Times are seconds of one
monotonic clock.
"""

from __future__ import annotations

import math
from typing import Final

# Kinds of hard failures: labels of metrics.
REFUSED: Final = "connect"
CLOSED: Final = "closed"
INVALID: Final = "invalid"
TIMEOUT: Final = "timeout"
UNAVAILABLE: Final = "unavailable"
UNAVAILABLE_STATUSES: Final = frozenset((502, 503, 504))

# States of a replica.
IN_USE: Final = 0
AVOIDED: Final = 1  # for a moment, as it has just failed
EJECTED: Final = 2
HALF_OPEN: Final = 3  # the next request is its trial
ON_TRIAL: Final = 4  # the trial is in flight
REFUSING: Final = 5  # it refuses connections; see `suspensions`


class ReplicaHealth:
    """What one worker knows of one replica."""

    __slots__ = (
        "by_rate", "ejections", "errors", "failures", "failures_by_client", "last_ejection", "last_error", "last_probe",
        "readmitted_at", "reason", "replica_id", "returned_at", "run_base", "run_by_client", "run_failures",
        "run_successes", "server_error", "state", "streak", "streak_client", "streak_started_at", "successes",
        "timeouts_in_streak", "trial", "trial_started_at", "until",
    )  # fmt: skip

    def __init__(self, replica_id: str) -> None:
        self.replica_id = replica_id
        self.state = IN_USE
        self.until = 0.0  # end of the avoidance or ejection
        self.reason = ""  # of the ejection
        self.by_rate = False  # it was ejected for its rate of failures
        self.errors = 0  # hard failures and failed connects since the replica was added
        self.last_error = ""  # the kind of the last one
        self.server_error = 0  # status of the first response with 500 or more
        self.last_probe = ""  # result of the last connect that only checked whether the replica accepts connections
        # For the rates; halved every `_WINDOW_SECONDS`.
        self.successes = 0  # written by each exchange
        self.failures = 0
        self.failures_by_client: dict[bytes, int] = {}
        # The failures since the last success, of both kinds.
        self.run_failures = 0
        self.run_by_client: dict[bytes, int] = {}
        self.run_successes = 0  # `successes` at the start of the run: another value means that it is over
        self.run_base = (0, 0)  # successes and failures of all replicas at that time
        self.returned_at = -math.inf  # when slots were last given back for a failure that may be due to the input
        # Hard failures in a row.
        self.streak = 0
        self.timeouts_in_streak = 0
        self.streak_started_at = 0.0
        self.streak_client: bytes | None = None  # None if there were several
        # Ejections.
        self.ejections = 0  # in a row; a replica that is healthy for a while loses them
        self.last_ejection = 0.0  # its seconds
        self.readmitted_at = -math.inf
        self.trial: object = None  # the request
        self.trial_started_at = 0.0

    @property
    def is_ejected(self) -> bool:
        """True until the replica has passed its trial."""
        return self.state in (EJECTED, HALF_OPEN, ON_TRIAL)
