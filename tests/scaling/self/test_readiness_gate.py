"""When a new pod may become ready: with the size of the others, or after a timeout."""

from router.scaling.self.readiness_gate import ANNOUNCEMENT_TIMEOUT_SECONDS, SizeReadinessGate


def test_pod_waits_for_its_cpus_only_once() -> None:
    gate = SizeReadinessGate(30.0)
    assert gate.unmet_condition(0.0, 1.0, has_peers=True) == "the size of the other routers is not known yet"
    gate.on_pod_size(2.0)
    assert gate.unmet_condition(0.5, 1.0, has_peers=True) == "2 CPUs not given yet, 1 so far"
    assert gate.unmet_condition(1.0, 2.0, has_peers=True) is None
    gate.on_pod_size(4.0)  # a ready pod stays ready while it is resized
    assert gate.unmet_condition(1.5, 2.0, has_peers=True) is None


def test_pod_without_peers_does_not_wait() -> None:
    assert SizeReadinessGate(30.0).unmet_condition(0.0, 1.0, has_peers=False) is None


def test_pod_stops_waiting_for_an_announcement_after_a_timeout() -> None:
    gate = SizeReadinessGate(30.0)
    assert gate.unmet_condition(5.0, 1.0, has_peers=True) is not None
    assert gate.unmet_condition(5.0 + ANNOUNCEMENT_TIMEOUT_SECONDS, 1.0, has_peers=True) is None


def test_pod_does_not_wait_when_pods_keep_their_original_cpus() -> None:
    gate = SizeReadinessGate(30.0)
    assert gate.unmet_condition(0.0, 0.5, has_peers=True) is not None
    gate.on_pod_size(0.0)
    assert gate.unmet_condition(0.1, 0.5, has_peers=True) is None


def test_pod_stops_waiting_for_cpus_after_its_patience() -> None:
    gate = SizeReadinessGate(30.0)
    gate.on_pod_size(2.0)
    assert gate.unmet_condition(0.0, 1.0, has_peers=True) is not None
    assert gate.unmet_condition(29.9, 1.0, has_peers=True) is not None
    assert gate.unmet_condition(30.0, 1.0, has_peers=True) is None


def test_pod_with_more_cpus_than_announced_does_not_wait() -> None:
    gate = SizeReadinessGate(30.0)
    gate.on_pod_size(1.0)
    assert gate.unmet_condition(0.0, 2.0, has_peers=True) is None
