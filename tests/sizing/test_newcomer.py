"""When a new pod may get ready: with the size of the rest, or when waiting for it has gone on for too long."""

from router.sizing.newcomer import HEARING_SECONDS, Newcomer


def test_it_waits_for_its_cpu_and_then_no_more() -> None:
    pod = Newcomer(30.0)
    assert pod.lacks(0.0, 1.0, has_peers=True) == "the size of the other routers is not known yet"
    pod.told(2.0)
    assert pod.lacks(0.5, 1.0, has_peers=True) == "2 CPUs not given yet, 1 so far"
    assert pod.lacks(1.0, 2.0, has_peers=True) is None
    pod.told(4.0)  # a pod that has been ready stays so while it is made larger
    assert pod.lacks(1.5, 2.0, has_peers=True) is None


def test_a_pod_on_its_own_waits_for_nobody() -> None:
    assert Newcomer(30.0).lacks(0.0, 1.0, has_peers=False) is None


def test_a_size_that_nobody_knows_is_not_waited_for() -> None:
    pod = Newcomer(30.0)
    assert pod.lacks(5.0, 1.0, has_peers=True) is not None
    assert pod.lacks(5.0 + HEARING_SECONDS, 1.0, has_peers=True) is None


def test_nobody_waits_where_the_leader_says_that_pods_keep_what_they_came_with() -> None:
    pod = Newcomer(30.0)
    assert pod.lacks(0.0, 0.5, has_peers=True) is not None
    pod.told(0.0)
    assert pod.lacks(0.1, 0.5, has_peers=True) is None


def test_a_node_without_room_does_not_keep_it_unready_for_ever() -> None:
    pod = Newcomer(30.0)
    pod.told(2.0)
    assert pod.lacks(0.0, 1.0, has_peers=True) is not None
    assert pod.lacks(29.9, 1.0, has_peers=True) is not None
    assert pod.lacks(30.0, 1.0, has_peers=True) is None


def test_more_than_enough_is_enough() -> None:
    pod = Newcomer(30.0)
    pod.told(1.0)
    assert pod.lacks(0.0, 2.0, has_peers=True) is None
