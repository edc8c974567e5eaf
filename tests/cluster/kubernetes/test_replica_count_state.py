"""Which replica count is written, and how external writes are detected."""

from dataclasses import replace

from router.cluster.kubernetes.client import FIRST_RETRY_SECONDS
from router.cluster.kubernetes.objects import Deployment
from router.cluster.kubernetes.replica_count_state import (
    CONTEST_SECONDS,
    CONTESTED_WRITES,
    ExternalWrite,
    ReplicaCountState,
    ScalePatch,
)
from tests.cluster.kubernetes.object_builders import deployment

RELEASE = "azureml-fe/azureml/azureml-fe"


def deployment_with(replicas: int, version: int, manager: str = "") -> Deployment:
    return replace(deployment(), replicas=replicas, resource_version=str(version), replicas_manager=manager)


def state_after_write(replicas: int, version: int) -> ReplicaCountState:
    """The state after this router has written a count."""
    state = ReplicaCountState(deployment_with(1, 1))
    state.set_desired(replicas, ())
    state.patch_sent(ScalePatch(replicas, "1", ()))
    state.patch_succeeded(replicas, str(version))
    return state


def test_desired_count_is_written_with_the_version_that_it_replaces() -> None:
    state = ReplicaCountState(deployment_with(1, 7))
    assert state.next_patch(0.0) is None
    state.set_desired(3, ())
    assert state.next_patch(0.0) == ScalePatch(3, "7", ())
    state.patch_sent(ScalePatch(3, "7", ()))
    state.patch_succeeded(3, "8")
    assert state.next_patch(0.0) is None


def test_pods_to_remove_are_in_the_patch_only_if_the_count_decreases() -> None:
    state = ReplicaCountState(deployment_with(3, 7))
    state.set_desired(2, ("a",))
    assert state.next_patch(0.0) == ScalePatch(2, "7", ("a",))
    state.set_desired(4, ("a",))
    assert state.next_patch(0.0) == ScalePatch(4, "7", ())


def test_patch_replaces_the_newest_version() -> None:
    state = ReplicaCountState(deployment_with(1, 7))
    state.set_desired(3, ())
    assert state.observe_deployment(deployment_with(1, 9), 0.0) is None
    assert state.next_patch(0.0) == ScalePatch(3, "9", ())


def test_own_write_is_not_external_whether_its_response_or_the_watch_arrives_first() -> None:
    state = ReplicaCountState(deployment_with(1, 7))
    state.set_desired(3, ())
    state.patch_sent(ScalePatch(3, "7", ()))
    assert state.observe_deployment(deployment_with(3, 8), 0.0) is None
    state.patch_succeeded(3, "8")
    assert state.observe_deployment(deployment_with(3, 8, RELEASE), 0.0) is None


def test_patch_without_a_response_that_was_applied_is_an_own_write() -> None:
    state = state_after_write(3, 9)
    state.set_desired(4, ())
    state.patch_sent(ScalePatch(4, "9", ()))
    state.patch_failed(0.0)
    assert state.observe_read(4, "10", 0.0) is None
    assert state.observe_deployment(deployment_with(7, 11, RELEASE), 0.0) == ExternalWrite(RELEASE, 4, 7, 1)


def test_write_of_another_process_is_external_even_under_the_same_field_manager() -> None:
    assert state_after_write(3, 9).observe_deployment(deployment_with(20, 10, RELEASE), 0.0) == ExternalWrite(
        RELEASE, 3, 20, 1
    )


def test_writes_of_the_next_leader_undo_nothing() -> None:
    state = state_after_write(3, 9)
    state.clear_desired()
    for count in range(CONTESTED_WRITES + 1):
        observed = state.observe_deployment(deployment_with(10 + count, 10 + count, RELEASE), float(count))
        assert observed is not None
        assert observed.undone_writes == 0


def test_write_of_the_same_count_is_not_external_and_its_version_is_replaced() -> None:
    """Kubernetes makes a new version, with another manager of the field."""
    state = state_after_write(3, 9)
    assert state.observe_deployment(deployment_with(3, 10, "kubectl"), 0.0) is None
    state.set_desired(4, ())
    assert state.next_patch(0.0) == ScalePatch(4, "10", ())


def test_outdated_watch_event_is_ignored() -> None:
    state = state_after_write(3, 9)
    assert state.observe_deployment(deployment_with(1, 8), 0.0) is None
    assert state.current == 3


def test_external_write_names_its_field_manager() -> None:
    observed = state_after_write(3, 9).observe_deployment(deployment_with(20, 10, "kubectl"), 0.0)
    assert observed == ExternalWrite("kubectl", 3, 20, 1)
    observed = state_after_write(3, 9).observe_deployment(deployment_with(20, 10), 0.0)
    assert observed == ExternalWrite("an unknown field manager", 3, 20, 1)
    observed = ReplicaCountState(deployment_with(1, 7)).observe_deployment(deployment_with(5, 8, "helm"), 0.0)
    assert observed == ExternalWrite("helm", 1, 5, 0)


def test_nothing_is_written_while_backing_off_from_a_competing_controller() -> None:
    state = state_after_write(3, 9)
    undone = []
    for number in range(CONTESTED_WRITES):
        external = state.observe_deployment(deployment_with(1, 10 + 2 * number, "keda"), float(number))
        assert external is not None
        undone.append(external.undone_writes)
        state.patch_sent(ScalePatch(3, "", ()))
        state.patch_succeeded(3, str(11 + 2 * number))
    assert undone == [1, 2, 3]
    state.set_desired(5, ())
    state.back_off(100.0)
    state.set_desired(5, ())
    assert state.next_patch(99.0) is None
    assert state.next_patch(100.0) is not None


def test_writes_undone_long_ago_do_not_count() -> None:
    state = state_after_write(3, 9)
    state.observe_deployment(deployment_with(1, 10, "kubectl"), 0.0)
    state.patch_sent(ScalePatch(3, "", ()))
    state.patch_succeeded(3, "11")
    external = state.observe_deployment(deployment_with(2, 12, "kubectl"), CONTEST_SECONDS + 1)
    assert external is not None
    assert external.undone_writes == 1


def test_failed_patch_is_retried_after_a_delay_and_another_count_written_at_once() -> None:
    state = ReplicaCountState(deployment_with(1, 7))
    state.set_desired(3, ())
    state.patch_failed(10.0)
    delay = state.next_patch(10.0)
    assert isinstance(delay, float)
    assert abs(delay - FIRST_RETRY_SECONDS) < 1e-9
    assert state.next_patch(10.0 + FIRST_RETRY_SECONDS) == ScalePatch(3, "7", ())
    state.patch_failed(11.0, retry_after=5.0)
    assert isinstance(state.next_patch(15.9), float)
    state.set_desired(4, ())
    assert state.next_patch(11.0) == ScalePatch(4, "7", ())


def test_count_read_after_a_conflict_is_compared() -> None:
    state = state_after_write(3, 9)
    assert state.observe_read(3, "12", 0.0) is None
    state.set_desired(4, ())
    assert state.next_patch(0.0) == ScalePatch(4, "12", ())
    assert state.observe_read(7, "13", 0.0) == ExternalWrite("an unknown field manager", 3, 7, 1)
    assert state.next_patch(0.0) == ScalePatch(4, "13", ())
