"""What a reflector asks next, and what it then knows. The bytes are in `tests/kubernetes`."""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from typing import Any, cast
from unittest import mock

import orjson
import pytest

from router.cluster.kubernetes import reflector as module
from router.cluster.kubernetes.client import Api, ApiError, ApiUnreachable, resource_of
from router.cluster.kubernetes.objects import DEPLOYMENTS, Deployment
from router.cluster.kubernetes.reflector import PAUSES, Backoff, Gone, Reflection, Reflector
from tests.cluster.kubernetes.things import raw_deployment


class Scene:
    """A reflection, and what it has told of."""

    def __init__(self, namespace: str = "models") -> None:
        self.told: list[tuple[str, str]] = []
        self.reflection: Reflection[Deployment] = Reflection(DEPLOYMENTS, namespace, self._changed, lambda: 0.5)

    def _changed(self, before: Deployment | None, after: Deployment | None) -> None:
        what = "changed" if before and after else "added" if after else "removed"
        self.told.append((what, (after or before).name))  # type: ignore[union-attr]

    def page(self, *names: str, version: str = "10", more: str = "") -> list[tuple[str, str]]:
        metadata = {"resourceVersion": version, "continue": more}
        self.reflection.page({"metadata": metadata, "items": [raw_deployment(name) for name in names]})
        return self._heard()

    def event(self, kind: str, name: str, version: str, port: str = "5001") -> list[tuple[str, str]]:
        raw = raw_deployment(name, port=port)
        raw["metadata"]["resourceVersion"] = version
        return self.line({"type": kind, "object": raw})

    def line(self, said: Any) -> list[tuple[str, str]]:
        self.reflection.line(orjson.dumps(said))
        return self._heard()

    def _heard(self) -> list[tuple[str, str]]:
        told, self.told = self.told, []
        return told

    @property
    def asks(self) -> dict[str, str]:
        return dict(self.reflection.request().params)


def test_it_lists_page_by_page_and_then_watches_from_the_version_of_the_list() -> None:
    scene = Scene()
    assert scene.asks == {"labelSelector": "isazuremlapp=true", "limit": "250"}
    assert scene.page("a", "b", more="next") == [("added", "a"), ("added", "b")]
    assert scene.asks["continue"] == "next"
    assert not scene.reflection.listed
    assert scene.page("c", version="12") == [("added", "c")]
    assert scene.reflection.listed
    assert scene.asks == {
        "labelSelector": "isazuremlapp=true",
        "watch": "1",
        "allowWatchBookmarks": "true",
        "resourceVersion": "12",
        "timeoutSeconds": "360",
    }


def test_one_namespace_or_all_of_them() -> None:
    assert Scene("models").reflection.request().path == "/apis/apps/v1/namespaces/models/deployments"
    assert Scene("").reflection.request().path == "/apis/apps/v1/deployments"


def test_it_hears_what_changes_and_resumes_from_there() -> None:
    scene = Scene()
    scene.page("a")
    assert scene.event("ADDED", "b", "11") == [("added", "b")]
    assert scene.event("MODIFIED", "b", "12", port="7") == [("changed", "b")]
    assert scene.event("DELETED", "a", "13") == [("removed", "a")]
    assert scene.line({"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "90"}}}) == []
    assert scene.asks["resourceVersion"] == "90"


def test_what_is_repeated_is_not_told_again() -> None:
    scene = Scene()
    scene.page("a")
    scene.event("ADDED", "b", "11")
    assert scene.event("MODIFIED", "b", "11") == []
    assert scene.event("DELETED", "nobody", "12") == []


def test_a_version_that_is_gone_leads_to_a_list_that_replaces_what_was_known() -> None:
    scene = Scene()
    scene.page("a", "b")
    with pytest.raises(Gone):
        scene.line({"type": "ERROR", "object": {"kind": "Status", "code": 410, "reason": "Expired"}})
    scene.reflection.gone()
    assert "watch" not in scene.asks
    assert scene.reflection.listed  # what is known stays known
    assert scene.page("b", "c", more="next") == [("added", "c")]
    assert scene.page("d", version="99") == [("added", "d"), ("removed", "a")]
    assert scene.asks["resourceVersion"] == "99"


def test_a_page_that_is_gone_starts_the_list_over() -> None:
    scene = Scene()
    scene.page("a", more="next")
    scene.reflection.gone()
    assert "continue" not in scene.asks
    assert scene.page("b") == [("added", "b"), ("removed", "a")]


def test_other_errors_and_garbage_are_failures() -> None:
    scene = Scene()
    scene.page("a")
    with pytest.raises(ApiError, match="500 InternalError: broken"):
        scene.line({"type": "ERROR", "object": {"code": 500, "reason": "InternalError", "message": "broken"}})
    for line in (b"{", b"[]", b'{"type": "ADDED"}'):
        with pytest.raises(ApiUnreachable):
            scene.reflection.line(line)


def test_an_object_that_cannot_be_read_hides_no_other_one() -> None:
    scene = Scene()
    odd = {"metadata": {"name": "odd", "namespace": "models"}, "spec": {"selector": {"matchExpressions": [3]}}}
    scene.reflection.page({"metadata": {"resourceVersion": "1"}, "items": [odd, raw_deployment("a")]})
    assert scene.told == [("added", "a")]
    assert scene.reflection.unreadable == 1


def test_pauses_grow_up_to_a_limit_differ_and_begin_anew() -> None:
    first, longest = PAUSES
    least, most = Backoff(lambda: 1.0), Backoff(lambda: 0.0)
    assert [least.failed() for _ in range(2)] == [first / 2, first]
    assert [most.failed() for _ in range(60)][-1] == longest
    most.reset()
    assert most.failed() == first
    assert most.failed(least=30.0) == 30.0


def test_a_watch_that_lived_is_none_of_a_row_of_failures_however_it_ended() -> None:
    first, longest = PAUSES
    pauses = Backoff(lambda: 0.0)
    assert [pauses.ended(0.0, is_failure=True) for _ in range(60)][-1] == longest
    assert pauses.ended(200.0, is_failure=True) == first  # a load balancer that ends what is idle
    assert pauses.ended(0.1, is_failure=False) == 2 * first  # ended at once, without a word
    assert pauses.ended(200.0, is_failure=False) == 0.0
    assert pauses.ended(200.0, is_failure=False, least=3.0) == 3.0


class PutBack:
    """A server whose store was put back to an earlier state: its versions begin anew below those that it has told."""

    def __init__(self) -> None:
        self.lists = 0
        self.watched: list[str] = []
        self.followed = asyncio.Event()

    async def request(self, method: str, path: str, *, params: Mapping[str, str]) -> Any:
        self.lists += 1
        version = "90" if self.lists == 1 else "5"
        return {"metadata": {"resourceVersion": version}, "items": [raw_deployment("a")]}

    async def watch(self, path: str, params: Mapping[str, str], seconds: float) -> AsyncGenerator[bytes]:
        self.watched.append(params["resourceVersion"])
        if params["resourceVersion"] == "90":
            raise ApiError(504, "Timeout", "Timeout: Too large resource version: 90, current: 5")
        yield b""
        self.followed.set()
        await asyncio.Event().wait()


def test_a_server_that_was_put_back_is_listed_anew() -> None:
    async def story() -> None:
        server = PutBack()
        follows = Reflector(cast(Api, server), Scene().reflection)
        with mock.patch.object(module, "PAUSES", (0.01, 0.01)):
            task = asyncio.ensure_future(follows.run())
            async with asyncio.timeout(10):
                await server.followed.wait()
        assert server.watched == ["90", "5"]
        assert follows.restarts == 1
        task.cancel()
        await asyncio.wait((task,))

    asyncio.run(story())


@pytest.mark.parametrize(
    ("path", "resource"),
    [
        ("/api/v1/pods", "pods"),
        ("/api/v1/namespaces/models/pods/iris-1", "pods"),
        ("/apis/apps/v1/namespaces/models/deployments/iris/scale", "deployments/scale"),
        ("/apis/coordination.k8s.io/v1/namespaces/x/leases/azureml-fe", "leases"),
    ],
)
def test_calls_are_counted_by_resource(path: str, resource: str) -> None:
    assert resource_of(path) == resource
