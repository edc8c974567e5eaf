"""Status, capacity and the status page of a running router."""

import contextlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chromium import Page, chromium
from tests.processes import send_request, wait_until
from tests.routers import Router, StartRouter, echo_service, joined_router, open_echo_service

WITH_TROUBLE = """{
const service = structuredClone(services.get("free")), version = service.versions[0];
Object.assign(version, {abandoned: 3, suspect_slots: 1, utilization: 11.82, queued: 40});
const health = {errors: 5, last_error: "timeout", ejected_until: 1e9, ejected_for: "<b>5 failures in a row"};
Object.assign(version.replicas[0], {health, suspect_slots: 1, abandoned: 3});
services.set("free", service);
draw();
}"""
"""Shows a service with abandoned requests, a suspect slot, an ejected replica and a long queue."""

PLOTS_WITHOUT_ROOM_FOR_LABELS = """[...document.querySelectorAll('#detail .plot .frame')].filter(frame => {
  const [label, drawing] = [".max", "svg"].map(each => frame.querySelector(each).getBoundingClientRect());
  return label.bottom > drawing.top + 1;
}).length"""
"""The number of plots whose highest value is written over the data."""

SERVICES = "[...document.querySelectorAll('[data-service]')].map(row => row.dataset.service)"


def version(router: Router, service: str, name: str = "default") -> dict[str, Any]:
    (service_status,) = [each for each in router.status()["services"] if each["name"] == service]
    (version_status,) = [each for each in service_status["versions"] if each["name"] == name]
    return dict(version_status)


def get_json(router: Router, path: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(send_request(router.admin_port, path).body)
    return document


def capacity(router: Router, service: str) -> dict[str, Any]:
    return get_json(router, f"/capacity/{service}")


def test_status_and_capacity_of_a_busy_service(start: StartRouter) -> None:
    router = start({"slow": open_echo_service(delay=0.4), "free": open_echo_service(replica_max_concurrent_requests=0)})
    router.score("slow")
    wait_until(lambda: version(router, "slow")["mean_service_seconds"], "a report of the first request")
    pending = router.start_request("slow")
    wait_until(lambda: version(router, "slow")["in_flight"] == 1, "request in flight")
    slow = version(router, "slow")
    assert [(each["state"], each["in_flight"], each["slots"]) for each in slow["replicas"]] == [("ready", 1, 1)]
    assert (slow["slots"], slow["desired"], slow["minimum"], slow["maximum"]) == (1, 1, 1, 1)
    full = capacity(router, "slow")
    assert full["free_slots"] == 0
    assert full["expected_wait_seconds"] > 0
    assert pending.response().status == 200
    wait_until(lambda: capacity(router, "slow")["free_slots"] == 1, "a free slot")
    assert capacity(router, "slow")["suggested_concurrency"] == 1
    assert capacity(router, "free")["free_slots"] is None
    document = router.status()
    assert document["router"]["leads"] is True
    assert [worker["pid"] for worker in document["workers"]] == router.workers
    assert document["services"][0]["owner"] == document["router"]["pod"]
    assert document["totals"]["services"] == 2


def test_timeline_has_the_requests_of_all_routers(start: StartRouter) -> None:
    router = start({"iris": open_echo_service(), "idle": open_echo_service()})

    def requests(service: str | None = None) -> int:
        timeline = get_json(router, "/status/timeline?range=minutes&service=iris&service=unknown")
        assert list(timeline["services"]) == ["iris"]
        points = timeline["total"] if service is None else timeline["services"][service]
        rates: list[float] = [value or 0.0 for value in points[timeline["fields"].index("requests")]]
        return round(float(timeline["seconds"]) * sum(rates))

    with joined_router(router) as port:
        for _ in range(3):
            router.score("iris")
            send_request(port, "/api/v1/service/iris/score", b"[1]")
        wait_until(lambda: requests() >= 3, "requests of one router", seconds=40)
        wait_until(lambda: requests() == 6, "requests of both routers", seconds=40)
    assert requests("iris") == 6
    assert get_json(router, "/status/timeline?range=day")["error"] == "range must be one of minutes, hour"


def test_failed_and_slow_requests_have_explanations(start: StartRouter) -> None:
    router = start({"iris": open_echo_service(delay=0.2), "idle": open_echo_service()})
    slow = router.score("iris").headers["x-ms-request-id"]
    failed = send_request(router.port, "/api/v1/service/iris/status/500").headers["x-ms-request-id"]
    send_request(router.port, "/api/v1/service/idle/status/404")
    listed = get_json(router, "/status/requests?service=iris")
    (entry,) = listed["failed"]
    assert (entry["id"], entry["status"], entry["error"]) == (failed, 502, "replica-error")
    assert listed["slow"][0]["id"] == slow
    assert listed["slow"][0]["seconds"] >= 0.2
    assert get_json(router, f"/explain/{failed}")["status"] == 502
    assert get_json(router, "/status/requests?service=none")["error"] == "no such service"


def test_unknown_service_has_no_capacity(start: StartRouter) -> None:
    response = send_request(start({"free": open_echo_service()}).admin_port, "/capacity/%3Cb%3E")
    assert (response.status, json.loads(response.body)) == (404, {"error": "no such service"})


def text_of(selector: str) -> str:
    return f"(document.querySelector('{selector}')?.textContent ?? '')"


@contextlib.contextmanager
def open_page(router: Router) -> Iterator[Page]:
    """Open the status page, and wait until it is live."""
    with chromium() as browser, browser.page(f"http://127.0.0.1:{router.admin_port}/status") as page:
        page.wait_until(text_of("#live") + " === 'live'")
        yield page


@pytest.mark.needs("chromium")
def test_page_shows_services_and_follows_changes(start: StartRouter) -> None:
    services = {"slow": open_echo_service(delay=0.4, autoscale_max_replicas=2), "free": open_echo_service()}
    router = start(services)
    with open_page(router) as page:
        page.wait_until(f"{SERVICES}.join() === 'free,slow'")
        page.wait_until(text_of("[data-service=slow] .name span:last-child") + " === '1 replica ready'")
        with router.load("slow", clients=4):
            page.wait_until(text_of("[data-service=slow] .metric:nth-child(6) b") + " === '2'")
        page.wait_until(text_of("#decisions") + ".includes('slow')")
        page.evaluate("document.getElementById('filter').value = 'fr'; arrange()")
        assert page.evaluate(SERVICES) == ["free"]
        router.write_config({"free": {**open_echo_service(), "<img src=x onerror=window.hit=1>": 1}})
        page.wait_until("!document.getElementById('errors').classList.contains('hidden')")
        assert page.evaluate(text_of("#errors") + ".includes('<img src=x')")
        assert page.evaluate("document.images.length === 0 && window.hit === undefined")
        router.write_config({"new": open_echo_service()})
        page.evaluate("document.getElementById('filter').value = ''; arrange()")
        page.wait_until(f"{SERVICES}.join() === 'new'")
        page.wait_until("document.getElementById('errors').classList.contains('hidden')")
        router.write_config({})


@pytest.mark.needs("chromium")
def test_page_shows_settings_with_their_sources_and_changes(start: StartRouter, tmp_path: Path) -> None:
    source = tmp_path / "dynamic.yaml"
    source.write_text("router: {max_headers: 50}")
    services = {"free": open_echo_service()}
    router = start(services, dynamic_config_file=str(source), dynamic_config_poll_seconds=0.5)
    with open_page(router) as page:
        page.wait_until(text_of("#settings") + f".includes('max_headers50{source}, line 1: router')")
        page.wait_until(text_of("#dynamic") + f".startsWith('Dynamic configuration: {source}, version ')")
        source.write_text("router: {max_headers: 60}")
        page.wait_until(text_of("#changes") + f".includes('max_headers: 50 -> 60 ({source}, line 1: router)')")
        router.write_config(services, drain_seconds=7)
        page.wait_until(text_of("#settings") + ".includes('60 (at the next start: 7)')")


@pytest.mark.needs("chromium")
def test_page_of_a_service(start: StartRouter) -> None:
    described = {"description": "Names <b>flowers</b>", "tags": {"team": "risk"}, "properties": {"cost": "7"}}
    router = start({"free": open_echo_service(**described), "locked": echo_service()})
    assert {name: version(router, "free")[name] for name in described} == described
    assert version(router, "locked") | {"description": "", "tags": {}, "properties": {}} == version(router, "locked")
    failed = send_request(router.port, "/api/v1/service/free/status/500").headers["x-ms-request-id"]
    with open_page(router) as page:
        page.evaluate("document.querySelector('[data-service=free]').click()")
        page.wait_until(f"document.querySelector('#detail a[href=\"explain/{failed}\"]') !== null")
        address = next(each["address"] for each in version(router, "free")["replicas"])
        page.wait_until(text_of("#detail") + f".includes('{address}')")
        page.wait_until(text_of("#detail") + ".includes('ok, ')")
        assert page.evaluate(text_of("#overview") + " !== '' && document.getElementById('overview').offsetHeight === 0")
        assert page.evaluate(text_of("#detail") + ".includes('Names <b>flowers</b> · team: risk · cost: 7')")
        page.evaluate(WITH_TROUBLE)
        shown = page.evaluate(text_of("#detail"))
        assert "1 replica ejected" in shown
        assert "ejected, 1 suspect slot, 3 abandoned, until " in shown
        assert ": <b>5 failures in a row" in shown
        assert "1182" not in shown
        assert "full" in shown
        page.evaluate("location.hash = '#/service/locked'")
        page.wait_until(text_of("#detail h1") + " === 'locked'")
        starting = {"state": "starting", "health": None, "probe": None}
        probed = starting | {"probe": {"failure": "status 503", "not_ready_reason": None}}
        states = [page.evaluate(f"replicaState({json.dumps(each)})[1]") for each in (starting, probed)]
        assert states == ["not ready", "starting"]
        call = page.evaluate(text_of("#detail pre"))
        assert f"curl http://127.0.0.1:{router.port}/api/v1/service/locked/score" in call
        assert 'Authorization: Bearer $KEY"' in call
        assert router.key("locked") not in page.evaluate("document.documentElement.outerHTML")
        assert page.evaluate(PLOTS_WITHOUT_ROOM_FOR_LABELS) == 0
        page.size(375, 812, dark=True, mobile=True)
        assert page.evaluate("document.documentElement.scrollWidth <= 375"), "the page is wider than a phone"
        page.evaluate("location.hash = '#/service/%3Cb%3E'")
        page.wait_until(text_of("#detail") + ".includes('There is no service <b>')")
        page.evaluate("location.hash = ''")
        page.wait_until(f"{SERVICES}.length === 2 && document.getElementById('overview').offsetHeight > 0")
        assert page.evaluate("document.documentElement.scrollWidth <= 375"), "the page is wider than a phone"
        units = "[...document.querySelectorAll('[data-service=free] .unit')].map(each => each.textContent.trim())"
        assert page.evaluate(units) == ["req/s", "p95", "errors", "waiting", "replicas", "utilization"]


@pytest.mark.needs("chromium")
def test_page_says_that_a_dead_address_does_not_respond(start: StartRouter) -> None:
    with socket.socket() as unused:  # bound, but not listening
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        far = {"addresses": [address], "auth_enabled": False, "readiness_failure_threshold": 1}
        router = start({"far": far})
        with open_page(router) as page:
            page.wait_until(text_of("[data-service=far]") + ".includes('not responding')")
            page.wait_until(text_of("#problems") + f".includes('at {address} is not ready: Connection refused')")
            page.evaluate("location.hash = '#/service/far'")
            page.wait_until(text_of("#detail") + ".includes('Connection refused, ')")
            assert not page.evaluate(text_of("#detail") + ".includes('starting')")


@pytest.mark.needs("chromium")
def test_page_without_connection_has_a_banner_and_grey_numbers(start: StartRouter) -> None:
    router = start({"free": open_echo_service()})
    with open_page(router) as page:
        page.wait_until(f"{SERVICES}.length === 1")
        assert page.evaluate("document.getElementById('lost').offsetHeight") == 0
        assert router.stop() == 0
        page.wait_until("document.getElementById('lost').offsetHeight > 0")
        assert page.evaluate(text_of("#lost")).startswith("No connection to the router for ")
        assert page.evaluate("getComputedStyle(document.querySelector('main')).filter") == "grayscale(1)"
        assert page.evaluate(SERVICES) == ["free"]


def test_page_allows_no_script_but_its_own(start: StartRouter) -> None:
    router = start({"free": open_echo_service()})
    first, second = (send_request(router.admin_port, "/status") for _ in range(2))
    policy = first.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert b"@NONCE@" not in first.body
    assert policy != second.headers["content-security-policy"]
    root = send_request(router.admin_port, "/")
    assert (root.status, root.headers["location"]) == (302, "status")
    others = first.body.replace(b"http://www.w3.org/2000/svg", b"")  # a namespace, which is not loaded
    assert b"http" not in others, "the page loads something from another host"
