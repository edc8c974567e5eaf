"""Routes: traffic shares of versions, `Retry-After`, the retry budget."""

from collections import Counter
from time import monotonic

from hypothesis import given
from hypothesis import strategies as st

from router.config.router import load_settings
from router.config.service import parse_service
from router.gateway.abandoned import AbandonedResponse
from router.gateway.exchange import Exchange
from router.gateway.pool import ReplicaPool
from router.gateway.routes import RETRY_FLOOR, RETRY_SHARE, ExchangeCallbacks, ServiceRoute, VersionRoute
from router.gateway.turns import TurnQueue
from router.http.header_rules import response_rules
from router.model.services import Replica, ReplicaState, Service
from router.model.version_replicas import VersionReplicas
from router.telemetry.counters import VersionCounters


class Loop:
    """An event loop that runs no timer."""

    def call_later(self, seconds: float, callback: object) -> object:
        return object()


CALLBACKS = ExchangeCallbacks(
    Exchange.start,
    Exchange.restart_wait,
    Exchange.on_wait_timeout,
    Exchange.on_scoring_timeout,
    AbandonedResponse.on_timeout,
)


def version_route(service: Service, name: str = "default") -> VersionRoute:
    version = next(version for version in service.versions if version.name == name)
    loop: object = Loop()
    return VersionRoute((service.name, name), version, VersionCounters(), loop, CALLBACKS, lambda _: None)  # type: ignore[arg-type]


def add_ready_replicas(*versions: VersionRoute) -> None:
    """Add a ready replica to each version."""
    for version in versions:
        replica = Replica(f"{version.key[1]}-1", "127.0.0.1", 1, ReplicaState.READY)
        version.set_replicas(VersionReplicas((replica,)), make_pool)


def make_pool(replica: Replica) -> ReplicaPool:
    loop: object = Loop()
    address = replica.id, replica.host, replica.port
    return ReplicaPool(loop, *address, rules=response_rules(), settings=load_settings(environ={}), turns=TurnQueue())  # type: ignore[arg-type]


def service_route(**versions: dict[str, object]) -> ServiceRoute:
    service = parse_service("ab", {"versions": versions, "primary_key": "k"})
    return ServiceRoute(service, {name.encode(): version_route(service, name) for name in versions}, None, b"/")


def count_choices(routes: ServiceRoute) -> Counter[str]:
    """Return how many of 300 requests each version gets."""
    chosen: Counter[str] = Counter()
    for _ in range(300):
        version = routes.choose(None)
        assert version is not None
        chosen[version.key[1]] += 1
    return chosen


def test_traffic_of_a_version_without_ready_replicas_goes_to_the_others() -> None:
    routes = service_route(a={"is_default": True}, b={"traffic_percentile": 50}, c={"traffic_percentile": 10})
    assert set(count_choices(routes)) == {"a", "b", "c"}  # while no version has a ready replica
    a, b, c = routes.versions.values()
    add_ready_replicas(a, c)
    chosen = count_choices(routes)
    assert set(chosen) == {"a", "c"}
    assert abs(chosen["c"] - 60) <= 49  # expected: 300 * 10 / 50; limit: 7 standard deviations
    assert routes.choose(b"b") is b  # a forced version is not replaced
    add_ready_replicas(b)
    assert set(count_choices(routes)) == {"a", "b", "c"}


def test_version_scaled_to_zero_gets_its_share_of_the_traffic() -> None:
    routes = service_route(a={"is_default": True}, b={"traffic_percentile": 50, "autoscale_min_replicas": 0})
    add_ready_replicas(routes.versions[b"a"])
    assert count_choices(routes)["b"] > 0


@given(st.integers(0, 100))
def test_versions_get_their_shares_of_the_traffic(percent: int) -> None:
    routes = service_route(a={"is_default": True}, b={"traffic_percentile": percent})
    add_ready_replicas(*routes.versions.values())
    chosen = count_choices(routes)
    assert chosen["b"] == 0 if percent == 0 else chosen["b"] > 0 or percent < 10
    assert chosen["a"] == 0 if percent == 100 else chosen["a"] > 0 or percent > 90
    assert abs(chosen["b"] - 3 * percent) <= 60  # 7 standard deviations


def test_forced_version_needs_its_exact_name() -> None:
    routes = service_route(blue={}, green={"traffic_percentile": 0})
    for forced, name in ((b"green", "green"), (b" blue ", "blue"), (b"Blue", None), (b"", None), (b"blu", None)):
        version = routes.choose(forced)
        assert (version.key[1] if version is not None else None) == name


def test_retry_after_is_one_second_without_measurements() -> None:
    assert version_route(parse_service("iris", {})).retry_after() == 1


def test_retry_after_is_the_time_to_drain_the_queue() -> None:
    version = version_route(parse_service("iris", {}))
    lease_cache = version.lease_cache
    version.tick(monotonic() - 5.0)
    lease_cache.completed, lease_cache.service_seconds, lease_cache.busy = 2, 5.0, 1  # mean service time: 2.5 s
    assert version.retry_after() == 3
    lease_cache.waiters.update(dict.fromkeys(range(7)))
    assert version.retry_after() == 20
    lease_cache.busy = 4
    assert version.retry_after() == 5
    lease_cache.waiters.update(dict.fromkeys(range(1000)))
    assert version.retry_after() == 60


def test_idle_time_does_not_increase_retry_after() -> None:
    version = version_route(parse_service("iris", {}))
    lease_cache = version.lease_cache
    version.tick(monotonic() - 9.0)
    # The only completed request of the last nine seconds.
    lease_cache.completed, lease_cache.service_seconds, lease_cache.busy = 1, 1.5, 1
    lease_cache.waiters.update(dict.fromkeys(range(2)))
    assert version.retry_after() == 5


def test_retry_after_uses_older_measurements_if_there_are_no_recent_ones() -> None:
    version = version_route(parse_service("iris", {}))
    lease_cache = version.lease_cache
    lease_cache.completed, lease_cache.service_seconds, lease_cache.busy = 1, 30.0, 2
    version.tick(monotonic() - 9.0)
    assert version.retry_after() == 15


def test_retry_budget_is_a_floor_plus_a_share_of_the_requests() -> None:
    version = version_route(parse_service("iris", {}))
    assert [version.may_retry() for _ in range(RETRY_FLOOR + 5)] == [True] * RETRY_FLOOR + [False] * 5
    version.lease_cache.arrivals += 50
    share = int(50 * RETRY_SHARE)
    assert [version.may_retry() for _ in range(share + 5)] == [True] * share + [False] * 5
