"""Overloaded versions: problems and log."""

import logging

import pytest

from router.admin.overload import QUIET_SECONDS, OverloadMonitor, describe_overload
from router.admin.rates import WINDOW_SECONDS, RequestRates
from router.model.services import Replica, ReplicaState, Version, VersionKey
from router.model.version_replicas import NO_REPLICAS, VersionReplicas
from router.scaling.autoscaler import ScalingDecision
from router.scaling.demand import Demand
from tests.processes import wait_until
from tests.routers import StartRouter, open_echo_service
from tests.scaling.builders import version

IRIS: VersionKey = ("iris", "default")
BLUE: VersionKey = ("iris", "blue")
FIXED = version(autoscale_enabled=False, num_replicas=1)


class Scaled:
    """Versions with one ready replica, and the decision of their autoscaler."""

    def __init__(self, **versions: Version) -> None:
        self.versions = {("iris", name): each for name, each in versions.items()}

    def replicas(self, key: VersionKey) -> VersionReplicas:
        return NO_REPLICAS if key not in self.versions else VersionReplicas((_replica(ReplicaState.READY),))


def _replica(state: ReplicaState) -> Replica:
    return Replica("iris-1", "127.0.0.1", 1, state)


def decision(**values: object) -> ScalingDecision:
    return ScalingDecision(**{"desired": 1, "utilization": 40.0, "reason": "", "raw_desired": 47, **values})  # type: ignore[arg-type]


class Watched:
    """A monitor of the version iris, whose requests the test reports."""

    def __init__(self) -> None:
        self.rates = RequestRates()
        self.leads = True
        self.state = Scaled(default=FIXED)
        self.monitor = OverloadMonitor(self.state, self.rates, lambda _: decision(), lambda: self.leads)

    def report(self, now: float, arrivals: int, refused: int) -> list[str]:
        self.rates.add(IRIS, Demand(0.2, arrivals=arrivals, refused=refused).usage, now)
        self.monitor.tick(now)
        return self.problems()

    def problems(self) -> list[str]:
        return [problem.text for problem in self.monitor.problems()]


PROBLEM = (
    "service iris: refuses many of its requests: no slot within 500 ms "
    "(97 % of them: needs 47 replicas, has 1; num_replicas is 1)"
)


def test_overload_is_a_problem_until_the_window_has_passed() -> None:
    watched = Watched()
    assert watched.report(1.0, 100, 97) == [PROBLEM]
    watched.monitor.tick(1.1)  # no check is due
    assert watched.problems() == [PROBLEM]
    watched.monitor.tick(1.0 + WINDOW_SECONDS)
    assert watched.problems() == []


@pytest.mark.parametrize(
    ("arrivals", "refused", "is_overloaded"), [(10, 9, False), (10, 10, True), (200, 10, True), (201, 10, False)]
)
def test_few_refused_requests_are_no_problem(arrivals: int, refused: int, is_overloaded: bool) -> None:
    assert bool(Watched().report(1.0, arrivals, refused)) is is_overloaded


def test_requests_that_arrived_before_the_window_are_at_most_all() -> None:
    (problem,) = Watched().report(1.0, 2, 20)
    assert "(100 % of them" in problem


def test_log_has_the_start_and_the_end_of_a_load_that_comes_in_waves(caplog: pytest.LogCaptureFixture) -> None:
    watched = Watched()
    for second in range(1, 200):
        watched.report(second, 10, 9 if second % 40 < 20 else 0)
    assert [(each.levelno, each.getMessage()) for each in caplog.records] == [(logging.WARNING, "overload began")]
    assert caplog.records[0].text == PROBLEM.replace("97", "90")  # type: ignore[attr-defined]
    last_overloaded = 189
    for second in range(200, last_overloaded + int(QUIET_SECONDS) + 5):
        watched.report(second, 10, 0)
    assert [each.getMessage() for each in caplog.records] == ["overload began", "overload ended"]


def test_only_the_leader_reports_and_removed_versions_are_forgotten(caplog: pytest.LogCaptureFixture) -> None:
    watched = Watched()
    assert watched.report(1.0, 100, 97)
    watched.leads = False
    assert watched.report(2.0, 100, 97) == []
    watched.leads = True
    assert watched.report(3.0, 100, 97)
    watched.state.versions = {}
    assert watched.report(4.0, 100, 97) == []
    watched.monitor.tick(4.0 + QUIET_SECONDS)
    assert [each.getMessage() for each in caplog.records] == ["overload began"] * 2


SCALED = version(autoscale_max_replicas=10)


@pytest.mark.parametrize(
    ("settings", "made", "ready", "end"),
    [
        (SCALED, decision(desired=10, bound="maximum"), 10, "needs 47 replicas, has 10; autoscale_max_replicas is 10"),
        (SCALED, decision(desired=8, raw_desired=8), 3, "needs 8 replicas, has 3; 5 more requested"),
        (SCALED, decision(desired=3, raw_desired=2), 3, "has 3"),
        (SCALED, None, 0, "has 0"),
        (FIXED, decision(bound="silence", raw_desired=1), 1, "has 1; num_replicas is 1"),
    ],
)
def test_problem_names_what_limits_the_replicas(
    settings: Version, made: ScalingDecision | None, ready: int, end: str
) -> None:
    problem = describe_overload(BLUE, settings, 0.5, made, ready)
    assert (problem.service, problem.version) == BLUE
    assert problem.cause == "refuses many of its requests: no slot within 500 ms"
    assert problem.detail == f"50 % of them: {end}"


def test_version_without_a_queue_has_no_time_to_wait() -> None:
    assert describe_overload(IRIS, version(max_queue_length=0), 0.5, None, 1).cause.endswith(": no free slot")


def test_overload_of_a_router_is_in_its_status_and_its_log(start: StartRouter) -> None:
    router = start({"slow": open_echo_service(delay=0.5, max_request_wait_time=1)})
    with router.load("slow", clients=8):
        wait_until(lambda: router.status()["problems"], "a problem")
        (problem,) = router.status()["problems"]
    assert problem.startswith("service slow: refuses ")
    assert problem.endswith("has 1; num_replicas is 1)")
    (line,) = router.log("overload began")
    assert (line["level"], line["service"]) == ("warning", "slow")
