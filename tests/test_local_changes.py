"""`azureml-fe local` while its file changes: what is valid is in force, what is not changes nothing, and no request is
lost."""

from typing import Any

import pytest

from tests.processes import all_gone, until
from tests.routers import Start, echo, open_echo

BLUE = {"azureml-model-deployment": "blue"}
GREEN = {"azureml-model-deployment": "green"}


def test_a_changed_setting_is_in_force_and_no_request_is_dropped(start: Start) -> None:
    router = start({"slow": open_echo(delay=0.2), "free": open_echo()})
    replicas = router.replicas()
    assert router.score("slow").status == 200
    with router.load("free") as load:
        load.goes_on()
        pending = router.pending("slow")
        router.write({"slow": open_echo(delay=0.2, scoring_timeout_ms=50), "free": open_echo()})
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
        router.write({"free": open_echo(scoring_timeout_ms=6000), "new": open_echo()})
        router.says("changed file in force")
        router.ready("new")
        assert router.score("new").status == 200
        assert router.metric("config_last_reload_success") == 1
        assert router.metric("config_errors_total") == 1
        load.goes_on()
    assert load.all_well, load


def test_a_file_that_is_gone_changes_nothing(start: Start) -> None:
    router = start({"free": open_echo()})
    router.file.unlink()
    router.says("changed file refused")
    assert router.score("free").status == 200
    router.write({"free": open_echo()})
    router.says("changed file in force")


def test_settings_of_the_router_wait_for_the_next_start(start: Start) -> None:
    router = start({"free": open_echo()})
    router.write({"free": open_echo()}, drain_seconds=7)
    router.says("settings of the router section take effect at the next start")
    assert router.score("free").status == 200


def test_services_come_and_go(start: Start) -> None:
    router = start({"free": open_echo()})
    with router.load("free") as load:
        router.write({"free": open_echo(), "new": echo()})
        router.says("new is ready: ")
        assert router.score("new").status == 401
        assert router.score("new", Authorization=f"Bearer {router.key('new')}").status == 200
        replicas = router.replicas()
        router.write({"free": open_echo()})
        until(lambda: router.score("new").status == 404, "its end")
        until(lambda: len(router.replicas()) == 1)
        assert not any("new" in labels.values() for _, labels in _labels(router.metrics()))
        router.write({"free": open_echo(), "new": echo()})
        router.says("new is ready: ", times=2)
        assert router.score("new", Authorization=f"Bearer {router.key('new')}").status == 200
        assert router.replicas().keys() - replicas.keys()
        load.goes_on()
    assert load.all_well, load


def _labels(metrics: dict[tuple[str, frozenset[tuple[str, str]]], float]) -> list[tuple[str, dict[str, str]]]:
    return [(name, dict(labels)) for name, labels in metrics]


@pytest.mark.parametrize("limit", [1, 0])
def test_a_service_that_goes_finishes_its_requests(start: Start, limit: int) -> None:
    services = {"free": open_echo(), "slow": open_echo(delay=0.6, replica_max_concurrent_requests=limit)}
    router = start(services)
    (slow,) = [line["pid"] for line in router.log("replica starts") if line["service"] == "slow"]
    pending = router.pending("slow")
    router.write({"free": open_echo()})
    until(lambda: router.score("slow").status == 404, "its end")
    assert not all_gone([slow])
    assert pending.answer().status == 200
    until(lambda: all_gone([slow]), "end of its replica")


def test_a_service_may_come_back_while_its_replicas_drain(start: Start) -> None:
    services = {"free": open_echo(), "slow": open_echo(delay=0.6)}
    router = start(services)
    pending = router.pending("slow")
    router.write({"free": open_echo()})
    until(lambda: router.score("slow").status == 404, "its end")
    router.write(services)
    until(lambda: router.metric("replicas", service="slow", state="ready") == 1, "a new replica")
    assert router.score("slow").status == 200
    assert pending.answer().status == 200
    router.ready("slow")


def test_versions_come_and_go(start: Start) -> None:
    # Nobody waits for a slot: whoever does so for a version that goes is turned away with it.
    blue = echo(is_default=True, replica_max_concurrent_requests=8)
    green = echo(traffic_percentile=50, replica_max_concurrent_requests=8)
    router = start({"ab": {"auth_enabled": False, "versions": {"blue": blue, "green": green}}}, serving=False)
    router.serves()
    router.ready("ab", 2)
    with router.load("ab") as load:
        load.goes_on()
        until(lambda: router.metric("requests_total", service="ab", version="green") > 0)
        router.write({"ab": {"auth_enabled": False, "versions": {"blue": blue}}})
        router.ready("ab", 1)
        load.goes_on()
        assert router.score("ab", b"", **GREEN).status == 404
    with router.load("ab", **BLUE) as blues:  # no share for green: it takes a while to be ready
        router.write({"ab": {"auth_enabled": False, "versions": {"blue": blue, "green": green}}})
        router.ready("ab", 2)
        assert router.score("ab", b"", **GREEN).status == 200
        blues.goes_on()
    assert load.all_well, load
    assert blues.all_well, blues


def test_the_limit_of_concurrent_requests_may_change_come_and_go(start: Start) -> None:
    router = start({"free": open_echo(num_replicas=2, replica_max_concurrent_requests=4)})
    workers = router.workers
    with router.load("free", clients=3) as load:
        for times, limit in enumerate((8, 0, 4, 0, 3), start=1):
            load.goes_on()
            changed = open_echo(num_replicas=2, replica_max_concurrent_requests=limit)
            router.write({"free": changed})
            router.says("changed file in force", times)
            slots = [2 * limit] if limit else []
            until(lambda slots=slots: _values(router.metrics(), "azureml_fe_slots") == slots)  # type: ignore[misc]
        load.goes_on()
    assert load.all_well, load
    assert router.workers == workers


def _values(metrics: dict[tuple[str, frozenset[tuple[str, str]]], float], name: str) -> list[float]:
    return [value for (its, _), value in metrics.items() if its == name]


@pytest.mark.parametrize("limit", [1, 0])
def test_a_changed_number_of_replicas_is_there_and_no_request_fails(start: Start, limit: int) -> None:
    def service(count: int) -> dict[str, Any]:
        return open_echo(
            delay=0.05, num_replicas=count, replica_max_concurrent_requests=limit, max_request_wait_time=10_000
        )

    router = start({"free": service(1)})
    with router.load("free", clients=6) as load:
        for count in (3, 1, 2):
            router.write({"free": service(count)})
            router.ready("free", count)
            load.goes_on()
    assert load.all_well, load


def test_a_changed_command_replaces_replicas_and_no_request_fails(start: Start) -> None:
    router = start({"free": open_echo(delay=0.02, num_replicas=2, max_request_wait_time=10_000)})
    before = router.replicas()
    with router.load("free", clients=4) as load:
        load.goes_on()
        router.write({"free": open_echo(delay=0.01, num_replicas=2, max_request_wait_time=10_000)})
        until(lambda: all_gone(before), "end of the former replicas")
        router.ready("free", 2)
        load.goes_on()
    assert load.all_well, load
    assert not before.keys() & router.replicas().keys()
