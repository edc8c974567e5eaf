"""`azureml-fe local` while its file changes: what is valid is in force, what is not changes nothing, and no request is
lost."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.processes import all_gone, until
from tests.routers import Router, Start, echo, open_echo

BLUE = {"azureml-model-deployment": "blue"}
GREEN = {"azureml-model-deployment": "green"}


@pytest.fixture(scope="module")
def shared(start_for_all: Start) -> Router:
    """The router of most of these tests: each gives it another file."""
    return start_for_all({"nobodys": open_echo()})


@pytest.fixture
def router(shared: Router) -> Iterator[Router]:
    """It, at rest after each test."""
    yield shared
    shared.at_rest()


def test_a_changed_setting_is_in_force_and_no_request_is_dropped(router: Router) -> None:
    router.serve({"slow": open_echo(delay=0.2), "free": open_echo()})
    replicas = router.replicas()
    assert router.score("slow").status == 200
    with router.load("free") as load:
        load.goes_on()
        pending = router.pending("slow")
        router.change({"slow": open_echo(delay=0.2, scoring_timeout_ms=50), "free": open_echo()})
        until(lambda: router.score("slow").status == 504, "the new timeout")
        assert pending.answer().status == 200  # it began before
        load.goes_on()
    assert load.all_well, load
    assert router.replicas() == replicas


def test_an_invalid_file_is_reported_and_the_old_one_stays(start: Start) -> None:
    router = start({"free": open_echo(scoring_timeout_ms=5000)})
    with router.load("free") as load:
        router.write({"free": open_echo(scoring_timeout_ms=999_999), "new": open_echo()})
        router.says("changed file refused")
        (line,) = router.log("changed file refused, the former one stays in force")
        assert line["level"] == "error"
        for part in (str(router.file), "line ", "service free", "scoring_timeout_ms = '999999'", "to 300000"):
            assert part in line["error"]
        assert router.metric("config_last_reload_success") == 0
        assert router.metric("config_errors_total") == 1
        assert router.score("new").status == 404
        router.serve({"free": open_echo(scoring_timeout_ms=6000), "new": open_echo()})
        assert router.score("new").status == 200
        assert router.metric("config_last_reload_success") == 1
        assert router.metric("config_errors_total") == 1
        load.goes_on()
    assert load.all_well, load
    router.file.unlink()
    router.says("changed file refused", times=2)
    assert router.score("free").status == 200


def test_settings_of_the_router_wait_for_the_next_start(router: Router) -> None:
    router.change({"free": open_echo()}, drain_seconds=7)
    assert router.log("settings of the router section take effect at the next start")


def test_services_come_and_go(start: Start) -> None:
    router = start({"free": open_echo()})
    with router.load("free") as load:
        router.change({"free": open_echo(), "new": echo()})
        router.says("new is ready: ")
        assert router.score("new").status == 401
        assert router.score("new", Authorization=f"Bearer {router.key('new')}").status == 200
        replicas = router.replicas()
        router.change({"free": open_echo()})
        until(lambda: router.score("new").status == 404, "its end")
        until(lambda: len(router.replicas()) == 1)
        assert not [labels for _, labels in router.metrics() if ("service", "new") in labels]
        router.change({"free": open_echo(), "new": echo()})
        router.says("new is ready: ", times=2)
        assert router.score("new", Authorization=f"Bearer {router.key('new')}").status == 200
        assert router.replicas().keys() - replicas.keys()
        load.goes_on()
    assert load.all_well, load


@pytest.mark.parametrize("limit", [1, 0])
def test_a_service_that_goes_finishes_its_requests(router: Router, limit: int) -> None:
    before = router.replicas()
    name = f"slow{limit}"
    router.serve({"free": open_echo(), name: open_echo(delay=0.6, replica_max_concurrent_requests=limit)})
    (slow,) = [line["pid"] for line in router.log("replica starts") if line["service"] == name]
    assert slow not in before
    pending = router.pending(name)
    router.change({"free": open_echo()})
    until(lambda: router.score(name).status == 404, "its end")
    assert not all_gone([slow])
    assert pending.answer().status == 200
    until(lambda: all_gone([slow]), "end of its replica")


def test_a_service_may_come_back_while_its_replicas_drain(router: Router) -> None:
    services = {"free": open_echo(), "slow": open_echo(delay=0.6)}
    router.serve(services)
    pending = router.pending("slow")
    router.change({"free": open_echo()})
    router.change(services)
    until(lambda: router.metric("replicas", service="slow", state="ready") == 1, "a new replica")
    assert router.score("slow").status == 200
    assert pending.answer().status == 200
    router.ready("slow")


def test_versions_come_and_go(router: Router) -> None:
    # Nobody waits for a slot: whoever does so for a version that goes is turned away with it.
    blue = echo(is_default=True, replica_max_concurrent_requests=8)
    green = echo(traffic_percentile=50, replica_max_concurrent_requests=8)
    both = {"ab": {"auth_enabled": False, "versions": {"blue": blue, "green": green}}}
    router.change(both)
    router.ready("ab", 2)
    with router.load("ab") as load:
        load.goes_on()
        until(lambda: router.metric("requests_total", service="ab", version="green") > 0)
        router.change({"ab": {"auth_enabled": False, "versions": {"blue": blue}}})
        router.ready("ab", 1)
        load.goes_on()
        assert router.score("ab", b"", **GREEN).status == 404
    with router.load("ab", **BLUE) as blues:  # no share for green: it takes a while to be ready
        router.change(both)
        router.ready("ab", 2)
        assert router.score("ab", b"", **GREEN).status == 200
        blues.goes_on()
    assert load.all_well, load
    assert blues.all_well, blues


def test_the_limit_of_concurrent_requests_may_change_come_and_go(router: Router) -> None:
    def service(limit: int) -> dict[str, Any]:
        return open_echo(num_replicas=2, replica_max_concurrent_requests=limit)

    def slots() -> list[float]:
        return [value for (name, _), value in router.metrics().items() if name == "azureml_fe_slots"]

    router.serve({"free": service(4)})
    workers = router.workers
    with router.load("free", clients=3) as load:
        for limit in (8, 0, 3):
            load.goes_on()
            router.change({"free": service(limit)})
            until(lambda limit=limit: slots() == ([2 * limit] if limit else []))  # type: ignore[misc]
        load.goes_on()
    assert load.all_well, load
    assert router.workers == workers


@pytest.mark.parametrize("limit", [1, 0])
def test_a_changed_number_of_replicas_is_there_and_no_request_fails(router: Router, limit: int) -> None:
    def service(count: int) -> dict[str, Any]:
        return open_echo(
            delay=0.05, num_replicas=count, replica_max_concurrent_requests=limit, max_request_wait_time=10_000
        )

    router.serve({"free": service(1)})
    with router.load("free", clients=6) as load:
        for count in (3, 1):
            router.serve({"free": service(count)})
            load.goes_on()
    assert load.all_well, load


def test_a_changed_command_replaces_replicas_and_no_request_fails(router: Router) -> None:
    router.serve({"free": open_echo(delay=0.02, num_replicas=2, max_request_wait_time=10_000)})
    before = router.replicas()
    with router.load("free", clients=4) as load:
        load.goes_on()
        router.serve({"free": open_echo(delay=0.01, num_replicas=2, max_request_wait_time=10_000)})
        load.goes_on()
    assert load.all_well, load
    until(lambda: all_gone(before), "end of the former replicas")
