"""What a reflector requests, what it caches, and when it retries."""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from typing import Any, cast

import orjson
import pytest

from router.cluster.kubernetes.client import (
    FIRST_RETRY_SECONDS,
    MAX_RETRY_SECONDS,
    ApiClient,
    ApiError,
    ApiUnreachable,
    resource_of,
)
from router.cluster.kubernetes.objects import Deployment
from router.cluster.kubernetes.reflector import ListWatchState, Reflector, VersionExpiredError, WatchBackoff
from router.cluster.kubernetes.resources import DEPLOYMENTS
from tests.cluster.kubernetes.object_builders import raw_deployment

Changes = list[tuple[str, str]]


class RecordedState:
    """A `ListWatchState` whose changes are recorded as "added", "changed" or "removed" with the object's name."""

    def __init__(self, namespace: str = "models") -> None:
        self._changes: Changes = []
        self.state: ListWatchState[Deployment] = ListWatchState(DEPLOYMENTS, namespace, self._record, lambda: 0.5)

    def _record(self, before: Deployment | None, after: Deployment | None) -> None:
        change = "changed" if before and after else "added" if after else "removed"
        self._changes.append((change, (after or before).name))  # type: ignore[union-attr]

    def apply_page(self, *names: str, version: str = "10", more: str = "") -> Changes:
        metadata = {"resourceVersion": version, "continue": more}
        self.state.apply_page({"metadata": metadata, "items": [raw_deployment(name) for name in names]})
        return self._take_changes()

    def apply_event(self, kind: str, name: str, version: str, port: str = "5001") -> Changes:
        raw = raw_deployment(name, port=port)
        raw["metadata"]["resourceVersion"] = version
        return self.apply_line({"type": kind, "object": raw})

    def apply_line(self, line: Any) -> Changes:
        self.state.apply_watch_line(orjson.dumps(line))
        return self._take_changes()

    def _take_changes(self) -> Changes:
        changes, self._changes = self._changes, []
        return changes

    @property
    def next_params(self) -> dict[str, str]:
        return dict(self.state.next_request().params)


def test_resource_is_listed_page_by_page_and_then_watched_from_the_version_of_the_list() -> None:
    recorded = RecordedState()
    assert recorded.next_params == {"labelSelector": "isazuremlapp=true", "limit": "250"}
    assert recorded.apply_page("a", "b", more="next") == [("added", "a"), ("added", "b")]
    assert recorded.next_params["continue"] == "next"
    assert recorded.apply_page("c", version="12") == [("added", "c")]
    assert recorded.next_params == {
        "labelSelector": "isazuremlapp=true",
        "watch": "1",
        "allowWatchBookmarks": "true",
        "resourceVersion": "12",
        "timeoutSeconds": "360",
    }


def test_path_is_that_of_one_namespace_or_of_all() -> None:
    assert RecordedState("models").state.next_request().path == "/apis/apps/v1/namespaces/models/deployments"
    assert RecordedState("").state.next_request().path == "/apis/apps/v1/deployments"


def test_watch_events_are_applied_and_the_watch_resumes_from_the_last_one() -> None:
    recorded = RecordedState()
    recorded.apply_page("a")
    assert recorded.apply_event("ADDED", "b", "11") == [("added", "b")]
    assert recorded.apply_event("MODIFIED", "b", "12", port="7") == [("changed", "b")]
    assert recorded.apply_event("DELETED", "a", "13") == [("removed", "a")]
    assert recorded.apply_line({"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "90"}}}) == []
    assert recorded.next_params["resourceVersion"] == "90"


def test_event_without_a_change_is_not_reported() -> None:
    recorded = RecordedState()
    recorded.apply_page("a")
    recorded.apply_event("ADDED", "b", "11")
    assert recorded.apply_event("MODIFIED", "b", "11") == []
    assert recorded.apply_event("DELETED", "unknown", "12") == []


def test_expired_version_leads_to_a_list_that_replaces_the_cache() -> None:
    recorded = RecordedState()
    recorded.apply_page("a", "b")
    with pytest.raises(VersionExpiredError):
        recorded.apply_line({"type": "ERROR", "object": {"kind": "Status", "code": 410, "reason": "Expired"}})
    recorded.state.restart_list()
    assert "watch" not in recorded.next_params
    assert [name.name for name in recorded.state.objects] == ["a", "b"]  # the cache stays in use
    assert recorded.apply_page("b", "c", more="next") == [("added", "c")]
    assert recorded.apply_page("d", version="99") == [("added", "d"), ("removed", "a")]
    assert recorded.next_params["resourceVersion"] == "99"


def test_expired_page_restarts_the_list() -> None:
    recorded = RecordedState()
    recorded.apply_page("a", more="next")
    recorded.state.restart_list()
    assert "continue" not in recorded.next_params
    assert recorded.apply_page("b") == [("added", "b"), ("removed", "a")]


def test_error_event_and_malformed_lines_raise() -> None:
    recorded = RecordedState()
    recorded.apply_page("a")
    with pytest.raises(ApiError, match="500 InternalError: broken"):
        recorded.apply_line({"type": "ERROR", "object": {"code": 500, "reason": "InternalError", "message": "broken"}})
    for line in (b"{", b"[]", b'{"type": "ADDED"}'):
        with pytest.raises(ApiUnreachable):
            recorded.state.apply_watch_line(line)


def test_malformed_object_is_skipped_and_the_others_are_cached() -> None:
    recorded = RecordedState()
    malformed = {"metadata": {"name": "odd", "namespace": "models"}, "spec": {"selector": {"matchExpressions": [3]}}}
    recorded.state.apply_page({"metadata": {"resourceVersion": "1"}, "items": [malformed, raw_deployment("a")]})
    assert [name.name for name in recorded.state.objects] == ["a"]


def test_change_that_cannot_be_applied_does_not_hide_the_others(caplog: pytest.LogCaptureFixture) -> None:
    applied: Changes = []

    def apply(before: Deployment | None, after: Deployment | None) -> None:
        changed = after or before
        assert changed is not None
        if changed.name == "iris":
            raise ValueError("cannot be applied")
        applied.append(("removed" if after is None else "added", changed.name))

    state: ListWatchState[Deployment] = ListWatchState(DEPLOYMENTS, "models", apply)
    both = [raw_deployment("iris"), raw_deployment("resnet")]
    state.apply_page({"metadata": {"resourceVersion": "10"}, "items": both})
    assert state.next_request().is_watch
    for each in both:
        state.apply_watch_line(orjson.dumps({"type": "DELETED", "object": each}))
    assert applied == [("added", "resnet"), ("removed", "resnet")]
    assert [record.message for record in caplog.records] == ["change of an object cannot be applied"] * 2


def test_delays_after_failures_grow_and_vary() -> None:
    shortest, longest = WatchBackoff(lambda: 1.0), WatchBackoff(lambda: 0.0)
    assert [shortest.next_delay(0.0, has_failed=True) for _ in range(2)] == [
        FIRST_RETRY_SECONDS / 2,
        FIRST_RETRY_SECONDS,
    ]
    assert [longest.next_delay(0.0, has_failed=True) for _ in range(60)][-1] == MAX_RETRY_SECONDS


def test_delay_is_not_shorter_than_retry_after() -> None:
    assert WatchBackoff().next_delay(0.0, has_failed=True, retry_after=30.0) == 30.0
    assert WatchBackoff().next_delay(200.0, has_failed=False, retry_after=3.0) == 3.0


def test_established_watch_resets_the_backoff_however_it_ended() -> None:
    backoff = WatchBackoff(lambda: 0.0)
    assert [backoff.next_delay(0.0, has_failed=True) for _ in range(60)][-1] == MAX_RETRY_SECONDS
    assert backoff.next_delay(200.0, has_failed=True) == FIRST_RETRY_SECONDS  # a load balancer closed it when idle
    assert backoff.next_delay(0.1, has_failed=False) == 2 * FIRST_RETRY_SECONDS  # ended immediately, without an error
    assert backoff.next_delay(200.0, has_failed=False) == 0.0


class RestoredServer:
    """A server whose store was restored to an earlier state: its versions restart below those that it sent before."""

    def __init__(self) -> None:
        self.lists = 0
        self.watched_versions: list[str] = []
        self.is_watched = asyncio.Event()

    async def request(self, method: str, path: str, *, params: Mapping[str, str]) -> Any:
        self.lists += 1
        version = "90" if self.lists == 1 else "5"
        return {"metadata": {"resourceVersion": version}, "items": [raw_deployment("a")]}

    async def watch(self, path: str, params: Mapping[str, str], seconds: float) -> AsyncGenerator[bytes]:
        self.watched_versions.append(params["resourceVersion"])
        if params["resourceVersion"] == "90":
            raise ApiError(504, "Timeout", "Timeout: Too large resource version: 90, current: 5")
        yield b""
        self.is_watched.set()
        await asyncio.Event().wait()


async def test_restored_server_is_listed_again() -> None:
    server = RestoredServer()
    reflector = Reflector(cast(ApiClient, server), RecordedState().state)
    task = asyncio.ensure_future(reflector.run())
    async with asyncio.timeout(10):
        await server.is_watched.wait()
    assert server.watched_versions == ["90", "5"]
    assert reflector.restarts == 1
    task.cancel()
    await asyncio.wait((task,))


class HangingServer:
    """A server whose first watch sends these lines, and then nothing while its connection stays open. Later watches are
    not accepted until `continues` is set."""

    def __init__(self, *lines: bytes) -> None:
        self.lines = lines
        self.watches = 0
        self.continues = asyncio.Event()
        self.hangs = asyncio.Event()
        self.closed = 0

    async def request(self, method: str, path: str, *, params: Mapping[str, str]) -> Any:
        return {"metadata": {"resourceVersion": "90"}, "items": [raw_deployment("a")]}

    async def watch(self, path: str, params: Mapping[str, str], seconds: float) -> AsyncGenerator[bytes]:
        self.watches += 1
        try:
            if self.watches > 1:
                await self.continues.wait()
            yield b""
            for line in self.lines:
                yield line
            self.hangs.set()
            await asyncio.Event().wait()
        finally:
            self.closed += 1


BOOKMARK = b'{"type":"BOOKMARK","object":{"kind":"Deployment","metadata":{"resourceVersion":"91"}}}'


async def test_silence_after_a_bookmark_is_a_failure_since_the_last_line() -> None:
    clock, server = [100.0], HangingServer(BOOKMARK)
    reflector = Reflector(cast(ApiClient, server), RecordedState().state, lambda: clock[0], silence_seconds=0.01)
    task = asyncio.ensure_future(reflector.run())
    async with asyncio.timeout(10):
        await server.hangs.wait()
        assert (reflector.stale_since, reflector.failure) == (None, "")
        clock[0] = 171.0
        while not reflector.failure:
            await asyncio.sleep(0)
    assert reflector.failure.startswith("no event and no bookmark for")
    assert reflector.stale_since == 100.0
    async with asyncio.timeout(10):
        while server.watches < 2:
            await asyncio.sleep(0.01)
    assert (server.closed, reflector.stale_since) == (1, 100.0)
    server.continues.set()
    async with asyncio.timeout(10):
        while reflector.failure:
            await asyncio.sleep(0)
    assert reflector.stale_since is None
    task.cancel()
    await asyncio.wait((task,))


async def test_silence_is_no_failure_without_bookmarks() -> None:
    server = HangingServer(b'{"type":"MODIFIED","object":{"metadata":{"resourceVersion":"91","name":"b"}}}')
    reflector = Reflector(cast(ApiClient, server), RecordedState().state, silence_seconds=0.0)
    task = asyncio.ensure_future(reflector.run())
    async with asyncio.timeout(10):
        await server.hangs.wait()
        for _ in range(100):
            await asyncio.sleep(0)
    assert (server.watches, reflector.failure, reflector.stale_since) == (1, "", None)
    task.cancel()
    await asyncio.wait((task,))


@pytest.mark.parametrize(
    ("path", "resource"),
    [
        ("/api/v1/pods", "pods"),
        ("/api/v1/namespaces/models/pods/iris-1", "pods"),
        ("/apis/apps/v1/namespaces/models/deployments/iris/scale", "deployments/scale"),
        ("/apis/coordination.k8s.io/v1/namespaces/x/leases/azureml-fe", "leases"),
    ],
)
def test_resource_of_a_path(path: str, resource: str) -> None:
    assert resource_of(path) == resource
