"""Status, capacity and the page in a browser, of a router that runs."""

import json
import shutil
from typing import Any

import pytest

from tests.chromium import chromium
from tests.processes import ask, until
from tests.routers import Router, Start, open_echo

WITH_CHROMIUM = pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Debian's chromium")


def status(router: Router) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(ask(router.admin_port, "/status.json").body)
    return told


def version(router: Router, service: str, name: str = "default") -> dict[str, Any]:
    (found,) = [each for each in status(router)["services"] if each["name"] == service]
    (its,) = [each for each in found["versions"] if each["name"] == name]
    return dict(its)


def capacity(router: Router, service: str) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(ask(router.admin_port, f"/capacity/{service}").body)
    return told


def test_status_and_capacity_tell_what_is_so(start: Start) -> None:
    router = start({"slow": open_echo(delay=0.4), "free": open_echo(replica_max_concurrent_requests=0)})
    router.score("slow")
    until(lambda: version(router, "slow")["mean_service_seconds"], "word of the first request")
    pending = router.pending("slow")
    until(lambda: version(router, "slow")["in_flight"] == 1, "request in flight")
    seen = version(router, "slow")
    assert [(each["state"], each["in_flight"], each["slots"]) for each in seen["replicas"]] == [("ready", 1, 1)]
    assert (seen["slots"], seen["desired"], seen["minimum"], seen["maximum"]) == (1, 1, 1, 1)
    full = capacity(router, "slow")
    assert full["free_slots"] == 0
    assert full["expected_wait_seconds"] > 0
    assert pending.answer().status == 200
    until(lambda: capacity(router, "slow")["free_slots"] == 1, "a free slot")
    assert capacity(router, "slow")["suggested_concurrency"] == 1
    assert capacity(router, "free")["free_slots"] is None
    whole = status(router)
    assert whole["router"]["leads"] is True
    assert [worker["pid"] for worker in whole["workers"]] == router.workers
    assert whole["services"][0]["owner"] == whole["router"]["pod"]
    assert whole["totals"]["services"] == 2


def test_unknown_service_has_no_capacity(start: Start) -> None:
    answer = ask(start({"free": open_echo()}).admin_port, "/capacity/%3Cb%3E")
    assert (answer.status, json.loads(answer.body)) == (404, {"error": "no such service"})


@WITH_CHROMIUM
def test_page_shows_services_and_follows_what_happens(start: Start) -> None:
    services = {"slow": open_echo(delay=0.4, autoscale_max_replicas=2), "free": open_echo()}
    router = start(services)
    with chromium() as browser, browser.page(f"http://127.0.0.1:{router.admin_port}/status") as page:
        page.until("document.querySelectorAll('article').length === 2")
        page.until("document.getElementById('live').textContent === 'live'")
        page.until("document.querySelector('[data-service=slow] .cells i.ready') !== null")
        with router.load("slow", clients=4):
            page.until("document.querySelector('[data-service=slow] .numbers').textContent.includes('in flight of')")
            page.until("document.querySelectorAll('[data-service=slow] .cells i.ready').length === 2")
        page.until("document.getElementById('decisions').textContent.includes('slow')")
        page.evaluate("document.getElementById('filter').value = 'fr'; arrange()")
        assert page.evaluate("[...document.querySelectorAll('article')].map(card => card.dataset.service)") == ["free"]
        router.write({"free": {**open_echo(), "<img src=x onerror=window.hit=1>": 1}})
        page.until("!document.getElementById('errors').classList.contains('hidden')")
        assert page.evaluate("document.getElementById('errorlist').textContent.includes('<img src=x')")
        assert page.evaluate("document.images.length === 0 && window.hit === undefined")
        router.write({"new": open_echo()})
        page.evaluate("document.getElementById('filter').value = ''; arrange()")
        page.until("[...document.querySelectorAll('article')].map(card => card.dataset.service).join() === 'new'")
        page.until("document.getElementById('errors').classList.contains('hidden')")
        page.size(390, 844, dark=True, mobile=True)
        assert page.evaluate("document.documentElement.scrollWidth <= 390"), "it is wider than a phone"


def test_page_lets_nothing_run_but_its_own_script(start: Start) -> None:
    router = start({"free": open_echo()})
    first, second = (ask(router.admin_port, "/status") for _ in range(2))
    policy = first.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert b"@NONCE@" not in first.body
    assert policy != second.headers["content-security-policy"]
    root = ask(router.admin_port, "/")
    assert (root.status, root.headers["location"]) == (302, "status")
    assert b"http" not in first.body, "something is fetched from elsewhere"
