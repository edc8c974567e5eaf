"""Where requests may go: shares of versions, the time to come again, the retry budget."""

from collections import Counter
from time import monotonic

from hypothesis import given
from hypothesis import strategies as st

from router.gateway.pool import ReplicaPool
from router.gateway.table import RETRY_FLOOR, RETRY_SHARE, ServiceRoute, VersionRoute
from router.http.headers import answer_kinds
from router.services import Replica, ReplicaState, Service, parse_service
from router.telemetry.counters import VersionCounters


class Loop:
    """An event loop in which nothing happens."""

    def call_later(self, seconds: float, action: object) -> object:
        return object()


def route(service: Service, name: str = "default") -> VersionRoute:
    version = next(version for version in service.versions if version.name == name)
    loop: object = Loop()
    return VersionRoute((service.name, name), version, VersionCounters(), loop, lambda _: None)  # type: ignore[arg-type]


def ready(*routes: VersionRoute) -> None:
    """Give each a ready replica."""
    for version in routes:
        replica = Replica(f"{version.key[1]}-1", "127.0.0.1", 1, ReplicaState.READY)
        version.set_replicas((replica,), (), pool)


def pool(replica: Replica) -> ReplicaPool:
    loop: object = Loop()
    where = replica.id, replica.host, replica.port
    return ReplicaPool(loop, *where, kinds=answer_kinds(), connect_timeout_seconds=1.0)  # type: ignore[arg-type]


def service_route(**versions: dict[str, object]) -> ServiceRoute:
    service = parse_service("ab", {"versions": versions, "primary_key": "k"})
    return ServiceRoute(service, {name.encode(): route(service, name) for name in versions}, None)


def choices(routes: ServiceRoute) -> Counter[str]:
    """Of 300 requests."""
    chosen: Counter[str] = Counter()
    for _ in range(300):
        version = routes.choose(None)
        assert version is not None
        chosen[version.key[1]] += 1
    return chosen


def test_the_share_of_a_version_without_a_ready_replica_is_the_others() -> None:
    routes = service_route(a={"is_default": True}, b={"traffic_percentile": 50}, c={"traffic_percentile": 10})
    assert set(choices(routes)) == {"a", "b", "c"}  # where none has any, each has its own answer
    a, b, c = routes.versions.values()
    ready(a, c)
    chosen = choices(routes)
    assert set(chosen) == {"a", "c"}
    assert abs(chosen["c"] - 60) <= 49  # 10 of 50; 7 standard deviations
    assert routes.choose(b"b") is b  # who asks for it by name gets its answer
    ready(b)
    assert set(choices(routes)) == {"a", "b", "c"}


def test_a_version_that_starts_from_zero_gets_its_share_which_starts_it() -> None:
    routes = service_route(a={"is_default": True}, b={"traffic_percentile": 50, "autoscale_min_replicas": 0})
    ready(routes.versions[b"a"])
    assert choices(routes)["b"] > 0


@given(st.integers(0, 100))
def test_versions_get_their_shares(percent: int) -> None:
    routes = service_route(a={"is_default": True}, b={"traffic_percentile": percent})
    ready(*routes.versions.values())
    chosen = choices(routes)
    assert chosen["b"] == 0 if percent == 0 else chosen["b"] > 0 or percent < 10
    assert chosen["a"] == 0 if percent == 100 else chosen["a"] > 0 or percent > 90
    assert abs(chosen["b"] - 3 * percent) <= 60  # 7 standard deviations


def test_forced_version_needs_its_exact_name() -> None:
    routes = service_route(blue={}, green={"traffic_percentile": 0})
    for asked, name in ((b"green", "green"), (b" blue ", "blue"), (b"Blue", None), (b"", None), (b"blu", None)):
        version = routes.choose(asked)
        assert (version.key[1] if version is not None else None) == name


def test_come_again_in_a_second_while_nothing_is_known() -> None:
    assert route(parse_service("iris", {})).retry_after() == 1


def test_come_again_when_the_queue_will_have_drained() -> None:
    version = route(parse_service("iris", {}))
    holder = version.holder
    version.tick(monotonic() - 5.0)
    holder.completed, holder.service_seconds, holder.busy = 2, 5.0, 1  # 2.5 s each
    assert version.retry_after() == 3
    holder.waiters.update(dict.fromkeys(range(7)))  # type: ignore[arg-type]
    assert version.retry_after() == 20
    holder.busy = 4
    assert version.retry_after() == 5
    holder.waiters.update(dict.fromkeys(range(1000)))  # type: ignore[arg-type]
    assert version.retry_after() == 60


def test_a_time_without_requests_makes_no_queue_look_slow() -> None:
    version = route(parse_service("iris", {}))
    holder = version.holder
    version.tick(monotonic() - 9.0)
    holder.completed, holder.service_seconds, holder.busy = 1, 1.5, 1  # the only one within the last nine seconds
    holder.waiters.update(dict.fromkeys(range(2)))  # type: ignore[arg-type]
    assert version.retry_after() == 5


def test_where_nothing_has_completed_lately_what_did_before_counts() -> None:
    version = route(parse_service("iris", {}))
    holder = version.holder
    holder.completed, holder.service_seconds, holder.busy = 1, 30.0, 2
    version.tick(monotonic() - 9.0)
    assert version.retry_after() == 15


def test_retry_budget_is_a_share_of_the_requests_and_a_few() -> None:
    version = route(parse_service("iris", {}))
    assert [version.may_retry() for _ in range(RETRY_FLOOR + 5)] == [True] * RETRY_FLOOR + [False] * 5
    version.holder.arrivals += 50
    more = int(50 * RETRY_SHARE)
    assert [version.may_retry() for _ in range(more + 5)] == [True] * more + [False] * 5
