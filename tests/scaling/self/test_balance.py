"""Moving load of kept connections from hot pods to others."""

import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.gateway.connection_limits import RepeatedSample
from router.scaling.self.balance import MOVE_SECONDS, share_to_move
from router.scaling.self.load import LoadWindow, PodLoad

WINDOW_SECONDS = 15.0
CPUS = 1.0


@pytest.mark.parametrize(
    ("own", "others", "excess"),
    [
        (0.9, [0.0, 0.0], 2 / 3),
        (0.9, [0.3], 1 / 3),
        (0.9, [0.7], 0.0),  # close to the mean
        (0.3, [0.9], 0.0),  # below the mean
        (0.9, [], 0.0),  # no other pod
        (0.39, [0.0], 0.0),  # fast enough
        (0.0, [0.0], 0.0),
    ],
)
def test_share_is_proportional_to_the_excess_over_the_mean(own: float, others: list[float], excess: float) -> None:
    assert share_to_move(own, others) == pytest.approx(excess / MOVE_SECONDS)


@given(st.floats(0, 1), st.lists(st.floats(0, 1), max_size=20))
def test_share_is_bounded_and_only_the_hotter_pods_move_load(own: float, others: list[float]) -> None:
    share = share_to_move(own, others)
    assert 0 <= share < 1 / MOVE_SECONDS
    assert not share or own > statistics.mean([own, *others])


class Fleet:
    """Pods with kept connections, each of which needs the same CPU. A closed connection is opened at a random pod."""

    def __init__(self, connections: list[int], cpus_each: float) -> None:
        self.connections = connections
        self.moved = 0
        self.history: list[list[int]] = []
        self._cpus_each = cpus_each
        self._random = random.Random(1)
        self._window = LoadWindow((), (), WINDOW_SECONDS, 95)
        self._samples = [RepeatedSample() for _ in connections]

    def run(self, seconds: int) -> None:
        for _ in range(seconds):
            now = float(len(self.history))
            for pod, count in enumerate(self.connections):
                used = min(count * self._cpus_each, CPUS)
                self._window.add(now, str(pod), PodLoad(1.0, CPUS, used, (0,), (0,)))
            utilizations = self._window.utilizations(now)
            for pod, count in enumerate(tuple(self.connections)):
                others = [each for name, each in utilizations.items() if name != str(pod)]
                share = share_to_move(utilizations[str(pod)], others)
                closed = len(self._samples[pod].select(range(count), share))
                self.connections[pod] -= closed
                self.moved += closed
                for _ in range(closed):
                    self.connections[self._random.randrange(len(self.connections))] += 1
            self.history.append(list(self.connections))

    def spread(self) -> float:
        """Return the largest excess of a pod over the mean, as a share of the mean."""
        return max(self.connections) / statistics.mean(self.connections) - 1


@pytest.mark.parametrize("connections", [[300, 0], [300, 300, 0], [900, 0, 0, 0, 0, 0], [40, 2]])
def test_load_of_a_hot_pod_moves_to_added_pods_without_overshoot(connections: list[int]) -> None:
    fleet = Fleet(list(connections), len(connections) * 0.7 / sum(connections))
    fleet.run(int(8 * MOVE_SECONDS))
    assert fleet.spread() < 0.35
    assert fleet.moved < 2 * sum(connections)
    peaks = [max(each) for each in fleet.history]
    assert max(peaks[60:]) <= max(connections)  # no pod becomes as hot as the first one was
    moved = fleet.moved
    fleet.run(300)
    assert fleet.moved - moved <= 0.1 * sum(connections)  # it settles


def test_equal_pods_keep_their_connections() -> None:
    fleet = Fleet([100, 95, 105], 0.009)
    fleet.run(600)
    assert fleet.moved == 0


def test_cool_pods_keep_their_connections() -> None:
    fleet = Fleet([300, 0], 0.001)
    fleet.run(600)
    assert fleet.moved == 0


def test_few_connections_move_too() -> None:
    """Fractions of a connection add up."""
    fleet = Fleet([4, 0], 0.25)
    fleet.run(300)
    assert sorted(fleet.connections) in ([1, 3], [2, 2])
