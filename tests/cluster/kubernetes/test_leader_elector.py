"""What the leader elector logs while the Lease cannot be written."""

import asyncio
import logging
from collections.abc import Iterator
from typing import Any, cast

import pytest

from router.cluster.kubernetes.client import ApiClient, ApiError, ApiUnreachable
from router.cluster.kubernetes.leader_elector import LeaderElector
from router.cluster.kubernetes.objects import NamespacedName

_CONFLICT = ApiError(409, "Conflict", "another router was faster")
_AWAY = ApiUnreachable("no response in time")
_FORBIDDEN = ApiError(403, "Forbidden", "no permission")


class _Api:
    """Responds to writes with these results; None is success. Then it cancels the elector."""

    def __init__(self, results: list[Exception | None]) -> None:
        self._results: Iterator[Exception | None] = iter(results)

    async def request(self, method: str, path: str, *, body: dict[str, Any], **_: object) -> dict[str, Any]:
        try:
            result = next(self._results)
        except StopIteration:
            raise asyncio.CancelledError from None
        if result is not None:
            raise result
        return body


def _new_elector(results: list[Exception | None]) -> LeaderElector:
    elector = LeaderElector(
        cast(ApiClient, _Api(results)), NamespacedName("azureml", "azureml-fe"), "azureml-fe-1_a", lambda *_: None
    )
    elector.on_lease_changed(None)
    return elector


@pytest.fixture(autouse=True)
def no_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.cluster.kubernetes.election.RETRY_SECONDS", 0.0)
    monkeypatch.setattr("router.cluster.kubernetes.election.RENEW_SECONDS", 0.0)
    monkeypatch.setattr("router.cluster.kubernetes.leader_elector._TICK_SECONDS", 0.0)


@pytest.mark.parametrize(
    ("results", "expected"),
    [
        ([None, None], []),
        ([_CONFLICT, None], []),
        ([*[_AWAY] * 5, None], ["the Lease cannot be written", "the Lease can be written again"]),
        ([_AWAY, _CONFLICT, _AWAY, None], ["the Lease cannot be written", "the Lease can be written again"] * 2),
        ([_AWAY, _AWAY, _FORBIDDEN, _FORBIDDEN], ["the Lease cannot be written"] * 2),
        ([_AWAY, None, _AWAY, None], ["the Lease cannot be written", "the Lease can be written again"] * 2),
    ],
)
def test_outage_is_logged_once(
    results: list[Exception | None],
    expected: list[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "router.cluster")
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(_new_elector(results).run())
    logged = [record.message for record in caplog.records if record.message != "leader"]
    assert logged == expected


@pytest.mark.parametrize(
    ("results", "is_failing"),
    [
        ([], False),
        ([None], False),
        ([_AWAY, _AWAY], True),
        ([ApiError(500, "InternalError", "etcdserver: request timed out")], True),
        ([_AWAY, None], False),
        ([_AWAY, _CONFLICT], False),
        ([_CONFLICT], False),
        ([_FORBIDDEN], False),
    ],
)
def test_store_that_hangs_is_reported(results: list[Exception | None], is_failing: bool) -> None:
    elector = _new_elector(results)
    assert elector.failing_seconds() == 0
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(elector.run())
    assert (elector.failing_seconds() > 0) == is_failing
