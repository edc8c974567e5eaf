"""`azureml-fe local` while its file changes: valid changes are applied, invalid ones have no effect, and no request is
lost."""

import gc
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from router.cli.local import RETRY_SECONDS, LocalSources
from router.cluster.local.service_files import ServiceFiles
from router.config.schema import SettingsError
from tests.processes import all_ended, wait_until
from tests.routers import Router, StartRouter, echo_service, open_echo_service

BLUE = {"azureml-model-deployment": "blue"}
GREEN = {"azureml-model-deployment": "green"}


@pytest.fixture(scope="module")
def shared(start_for_all: StartRouter) -> Router:
    """The router of most tests in this module; each writes its own file."""
    return start_for_all({"unused": open_echo_service()})


@pytest.fixture
def router(shared: Router) -> Iterator[Router]:
    """The shared router, idle after each test."""
    yield shared
    shared.wait_until_idle()


def test_changed_setting_is_applied_and_no_request_is_lost(router: Router) -> None:
    router.apply_services({"slow": open_echo_service(delay=0.2), "free": open_echo_service()})
    replicas = router.replicas()
    assert router.score("slow").status == 200
    with router.load("free") as load:
        load.wait_for_responses()
        pending = router.start_request("slow")
        router.apply_config({"slow": open_echo_service(delay=0.2, scoring_timeout_ms=50), "free": open_echo_service()})
        wait_until(lambda: router.score("slow").status == 504, "the new timeout")
        assert pending.response().status == 200  # it started before the change
        load.wait_for_responses()
    assert load.all_succeeded, load
    assert router.replicas() == replicas


def test_invalid_file_is_reported_and_the_previous_one_stays(start: StartRouter) -> None:
    router = start({"free": open_echo_service(scoring_timeout_ms=5000)})
    with router.load("free") as load:
        router.write_config({"free": open_echo_service(scoring_timeout_ms=999_999), "new": open_echo_service()})
        router.wait_for_stderr("changed file rejected")
        (line,) = router.log("changed file rejected, keeping the previous one")
        assert line["level"] == "error"
        for part in (str(router.config_file), "line ", "service free", "scoring_timeout_ms = '999999'", "to 300000"):
            assert part in line["error"]
        assert router.metric("config_last_reload_success") == 0
        assert router.metric("config_errors_total") == 1
        assert router.score("new").status == 404
        router.apply_services({"free": open_echo_service(scoring_timeout_ms=6000), "new": open_echo_service()})
        assert router.score("new").status == 200
        assert router.metric("config_last_reload_success") == 1
        assert router.metric("config_errors_total") == 1
        load.wait_for_responses()
    assert load.all_succeeded, load
    router.config_file.unlink()
    router.wait_for_stderr("changed file rejected", times=2)
    assert router.score("free").status == 200


def test_change_is_applied_once_generated_keys_can_be_stored(start: StartRouter) -> None:
    """A full disk is not an error of the file."""
    router = start({"echo": echo_service()})
    lock = router.state_dir / "keys.lock"
    lock.unlink()
    lock.mkdir()
    router.write_config({"echo": echo_service(), "new": echo_service()})
    router.wait_for_stderr("changed file rejected")
    assert router.score("echo", Authorization=f"Bearer {router.key('echo')}").status == 200
    assert router.score("new").status == 404
    time.sleep(RETRY_SECONDS + 0.5)
    assert len(router.log("changed file rejected, keeping the previous one")) == 1
    lock.rmdir()
    router.wait_for_stderr("changed file applied")
    assert router.score("new").status == 401


def test_no_garbage_is_collected_while_a_file_is_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A collection would stop the event loop while the parser has many objects."""
    enabled: list[bool] = []

    def load(*_: object, **__: object) -> None:
        enabled.append(gc.isenabled())
        raise SettingsError("services", None, "must be a mapping")

    monkeypatch.setattr("router.cluster.local.service_files.read_file", load)
    with pytest.raises(SettingsError):
        LocalSources(ServiceFiles([Path("models.yaml")]), {}).load()
    assert (enabled, gc.isenabled()) == ([False], True)


def test_named_pipe_in_place_of_the_file_is_rejected(start: StartRouter) -> None:
    router = start({"free": open_echo_service()})
    router.config_file.unlink()
    os.mkfifo(router.config_file)
    router.wait_for_stderr("changed file rejected.*Not a regular file")
    assert router.score("free").status == 200
    router.config_file.unlink()
    router.apply_config({"free": open_echo_service(), "new": open_echo_service()})
    assert router.score("new").status in (200, 503)


def test_router_settings_take_effect_at_the_next_start(router: Router) -> None:
    router.apply_config({"free": open_echo_service()}, drain_seconds=7)
    wait_until(lambda: router.log("settings of the router take effect at the next start"), "the warning")


def test_services_are_added_and_removed(start: StartRouter) -> None:
    router = start({"free": open_echo_service()})
    with router.load("free") as load:
        router.apply_config({"free": open_echo_service(), "new": echo_service()})
        router.wait_for_stderr("new is ready: ")
        assert router.score("new").status == 401
        assert router.score("new", Authorization=f"Bearer {router.key('new')}").status == 200
        replicas = router.replicas()
        router.apply_config({"free": open_echo_service()})
        wait_until(lambda: router.score("new").status == 404, "the service to be removed")
        wait_until(lambda: len(router.replicas()) == 1)
        assert not [labels for _, labels in router.metrics() if ("service", "new") in labels]
        router.apply_config({"free": open_echo_service(), "new": echo_service()})
        router.wait_for_stderr("new is ready: ", times=2)
        assert router.score("new", Authorization=f"Bearer {router.key('new')}").status == 200
        assert router.replicas().keys() - replicas.keys()
        load.wait_for_responses()
    assert load.all_succeeded, load


@pytest.mark.parametrize("limit", [1, 0])
def test_removed_service_finishes_its_requests(router: Router, limit: int) -> None:
    before = router.replicas()
    name = f"slow{limit}"
    router.apply_services(
        {"free": open_echo_service(), name: open_echo_service(delay=2, replica_max_concurrent_requests=limit)}
    )
    (slow,) = [line["pid"] for line in router.log("replica starts") if line["service"] == name]
    assert slow not in before
    pending = router.start_request(name)
    router.apply_config({"free": open_echo_service()})
    wait_until(lambda: router.score(name).status == 404, "the service to be removed")
    assert pending.response().status == 200
    wait_until(lambda: all_ended([slow]), "the end of its replica")


def test_service_can_be_added_again_while_its_replicas_drain(router: Router) -> None:
    services = {"free": open_echo_service(), "slow": open_echo_service(delay=0.6)}
    router.apply_services(services)
    pending = router.start_request("slow")
    router.apply_config({"free": open_echo_service()})
    router.apply_config(services)
    wait_until(lambda: router.metric("replicas", service="slow", state="ready") == 1, "a new replica")
    assert router.score("slow").status == 200
    assert pending.response().status == 200
    router.wait_for_replicas("slow")


def test_versions_are_added_and_removed(router: Router) -> None:
    # Enough slots, so that no request is queued: requests queued for a removed version are rejected.
    blue = echo_service(is_default=True, replica_max_concurrent_requests=8)
    green = echo_service(traffic_percentile=50, replica_max_concurrent_requests=8)
    both = {"ab": {"auth_enabled": False, "versions": {"blue": blue, "green": green}}}
    router.apply_config(both)
    router.wait_for_replicas("ab", 2)
    with router.load("ab") as load:
        load.wait_for_responses()
        wait_until(lambda: router.metric("requests_total", service="ab", version="green") > 0)
        router.apply_config({"ab": {"auth_enabled": False, "versions": {"blue": blue}}})
        router.wait_for_replicas("ab", 1)
        load.wait_for_responses()
        assert router.score("ab", b"", **GREEN).status == 404
    with router.load("ab", **BLUE) as blue_load:  # not green, which becomes ready later
        router.apply_config(both)
        router.wait_for_replicas("ab", 2)
        assert router.score("ab", b"", **GREEN).status == 200
        blue_load.wait_for_responses()
    assert load.all_succeeded, load
    assert blue_load.all_succeeded, blue_load


def test_limit_of_concurrent_requests_can_be_changed_removed_and_set(router: Router) -> None:
    def service(limit: int) -> dict[str, Any]:
        return open_echo_service(num_replicas=2, replica_max_concurrent_requests=limit)

    def slots() -> list[float]:
        return [value for (name, _), value in router.metrics().items() if name == "azureml_fe_slots"]

    router.apply_services({"free": service(4)})
    workers = router.workers
    with router.load("free", clients=3) as load:
        for limit in (8, 0, 3):
            load.wait_for_responses()
            router.apply_config({"free": service(limit)})
            wait_until(lambda limit=limit: slots() == ([2 * limit] if limit else []))  # type: ignore[misc]
        load.wait_for_responses()
    assert load.all_succeeded, load
    assert router.workers == workers


@pytest.mark.parametrize("limit", [1, 0])
def test_changed_number_of_replicas_is_applied_and_no_request_fails(router: Router, limit: int) -> None:
    def service(count: int) -> dict[str, Any]:
        return open_echo_service(
            delay=0.05, num_replicas=count, replica_max_concurrent_requests=limit, max_request_wait_time=10_000
        )

    router.apply_services({"free": service(1)})
    with router.load("free", clients=6) as load:
        for count in (3, 1):
            router.apply_services({"free": service(count)})
            load.wait_for_responses()
    assert load.all_succeeded, load


def test_changed_command_replaces_replicas_and_no_request_fails(router: Router) -> None:
    router.apply_services({"free": open_echo_service(delay=0.02, num_replicas=2, max_request_wait_time=10_000)})
    before = router.replicas()
    with router.load("free", clients=4) as load:
        load.wait_for_responses()
        router.apply_services({"free": open_echo_service(delay=0.01, num_replicas=2, max_request_wait_time=10_000)})
        load.wait_for_responses()
    assert load.all_succeeded, load
    wait_until(lambda: all_ended(before), "the end of the previous replicas")
