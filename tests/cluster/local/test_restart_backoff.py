"""Delays between the exit of a local replica and its replacement."""

from router.cluster.local.restart_backoff import FIRST_DELAY, MAX_DELAY, STABLE_SECONDS, RestartBackoff


def test_delay_doubles_with_each_failed_start() -> None:
    backoff, now, delays = RestartBackoff(), 100.0, []
    for _ in range(9):
        delays.append(backoff.on_exit(now, None))
        now += delays[-1] + 0.3
    assert delays == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]
    assert (delays[0], delays[-1]) == (FIRST_DELAY, MAX_DELAY)


def test_ready_replica_is_replaced_at_once_only_the_first_time() -> None:
    backoff = RestartBackoff()
    assert [backoff.on_exit(now, 2.0) for now in (10.0, 20.0, 30.0, 40.0)] == [0.0, 0.5, 1.0, 2.0]


def test_replicas_that_exit_within_one_delay_count_as_one_failure() -> None:
    backoff = RestartBackoff()
    assert [backoff.on_exit(now, None) for now in (10.0, 10.125, 10.25)] == [0.5, 0.375, 0.25]
    assert backoff.on_exit(10.6, None) == 1.0


def test_stable_replica_resets_the_delay() -> None:
    backoff = RestartBackoff()
    for now in (10.0, 20.0, 30.0):
        backoff.on_exit(now, None)
    backoff.on_ready(started_at=29.0, ready_for=1000.0)  # started before the last failure
    backoff.on_ready(started_at=31.0, ready_for=STABLE_SECONDS - 1)  # not ready for long enough
    assert backoff.on_exit(200.0, None) == 4.0
    backoff.on_ready(started_at=201.0, ready_for=STABLE_SECONDS)
    assert backoff.on_exit(300.0, None) == FIRST_DELAY


def test_exit_of_stable_replica_is_not_delayed_by_failures_of_others() -> None:
    backoff = RestartBackoff()
    for now in (10.0, 20.0, 30.0):
        backoff.on_exit(now, None)
    assert backoff.on_exit(30.5, STABLE_SECONDS) == 0.0
