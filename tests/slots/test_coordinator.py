"""The coordinator: it routes messages to the ledger of their version, and what a ledger sends to the right worker."""

from router.model.services import VersionKey
from router.slots.coordinator import Coordinator
from router.slots.ledger import LeaseMismatch
from router.slots.messages import (
    Grant,
    HeldSnapshot,
    Recall,
    Register,
    Registered,
    Reregister,
    Return,
    Revoke,
    SlotDemand,
    ToLeaseCache,
)
from tests.slots.ledgers import leased
from tests.slots.replicas import ready

IRIS: VersionKey = ("iris", "default")
RESNET: VersionKey = ("resnet", "blue")


class Recorder:
    """A coordinator, and the messages that it has delivered to each worker since `take`."""

    def __init__(self, *worker_ids: str) -> None:
        self.coordinator = Coordinator()
        self._delivered: dict[str, list[tuple[VersionKey, ToLeaseCache]]] = {}
        for worker_id in worker_ids:
            self.attach(worker_id)
            for key in (IRIS, RESNET):
                self.coordinator.receive(worker_id, key, [registration()])
        self.take()

    def attach(self, worker_id: str) -> None:
        delivered = self._delivered[worker_id] = []
        self.coordinator.connect_worker(worker_id, lambda key, message: delivered.append((key, message)))

    def take(self) -> dict[str, list[tuple[VersionKey, ToLeaseCache]]]:
        taken = {worker_id: [*delivered] for worker_id, delivered in self._delivered.items() if delivered}
        for delivered in self._delivered.values():
            delivered.clear()
        return taken


def registration(session: int = 1, wanted_up_to: int = 0, served_up_to: int = 0, **held: int) -> Register:
    return Register(1, session, held, frozenset(), wanted_up_to, served_up_to)


def held_by(coordinator: Coordinator, key: VersionKey, worker_id: str) -> dict[str, int]:
    ledger = coordinator.ledger(key)
    assert ledger is not None
    return ledger.held_by(worker_id)


def test_each_version_has_its_own_ledger() -> None:
    recorder = Recorder("a", "b")
    recorder.coordinator.set_replicas(IRIS, ready("i"))
    recorder.coordinator.set_replicas(RESNET, ready("r"))
    recorder.coordinator.receive("a", IRIS, [SlotDemand(1, 0)])
    recorder.coordinator.receive("b", RESNET, [SlotDemand(1, 0)])
    assert recorder.take() == {"a": [(IRIS, Grant("i", 1))], "b": [(RESNET, Grant("r", 1))]}


def test_message_of_one_worker_may_lead_to_messages_to_another() -> None:
    recorder = Recorder("a", "b")
    recorder.coordinator.set_replicas(IRIS, ready("i"))
    recorder.coordinator.receive("a", IRIS, [SlotDemand(1, 0)])
    recorder.coordinator.receive("b", IRIS, [SlotDemand(1, 0)])
    assert recorder.take() == {"a": [(IRIS, Grant("i", 1)), (IRIS, Recall(1, 0))]}
    recorder.coordinator.receive("a", IRIS, [Return("i", 1)])
    assert recorder.take() == {"b": [(IRIS, Grant("i", 1))]}


def test_messages_are_counted_by_their_metric_label() -> None:
    recorder = Recorder("a")
    recorder.coordinator.set_replicas(IRIS, ready("i"))
    recorder.coordinator.receive("a", IRIS, [SlotDemand(1, 0)])
    assert recorder.coordinator.messages == {"hello": 2, "welcome": 2, "wants": 1, "grant": 1}


def test_messages_that_arrive_together_are_one_change() -> None:
    recorder = Recorder("a", "b")
    recorder.coordinator.set_replicas(IRIS, ready("i"))
    recorder.coordinator.receive("a", IRIS, [SlotDemand(1, 0)])
    recorder.coordinator.receive("b", IRIS, [SlotDemand(1, 0)])
    recorder.take()
    recorder.coordinator.receive("b", IRIS, [SlotDemand(1, 1), SlotDemand(2, 1)])
    assert recorder.take() == {}


def test_registration_may_precede_the_replicas() -> None:
    recorder = Recorder("a")
    key = ("new", "default")
    recorder.coordinator.receive("a", key, [registration(i=1)])
    assert recorder.take() == {"a": [(key, Registered(1, 1))]}
    recorder.coordinator.set_replicas(key, ready("i"))
    assert held_by(recorder.coordinator, key, "a") == {"i": 1}


def test_cordoned_replicas_are_revoked_and_granted_again_once_uncordoned() -> None:
    recorder = Recorder("a")
    recorder.coordinator.set_replicas(IRIS, ready("i", "j", cordoned=["j"]))
    recorder.coordinator.receive("a", IRIS, [SlotDemand(2, 0)])
    assert recorder.take() == {"a": [(IRIS, Grant("i", 1))]}
    recorder.coordinator.set_replicas(IRIS, ready("i", "j", cordoned=["i", "j"]))
    assert recorder.take() == {"a": [(IRIS, Revoke("i"))]}
    recorder.coordinator.set_replicas(IRIS, ready("i", "j", cordoned=["i"]))
    assert recorder.take() == {"a": [(IRIS, Grant("j", 2))]}


def test_leases_of_detached_worker_are_free_in_all_versions() -> None:
    recorder = Recorder("a", "b")
    for key in (IRIS, RESNET):
        recorder.coordinator.set_replicas(key, ready("i"))
        recorder.coordinator.receive("a", key, [SlotDemand(1, 0)])
        recorder.coordinator.receive("b", key, [SlotDemand(1, 0)])
    recorder.take()
    recorder.coordinator.remove_worker("a")
    assert recorder.take() == {"b": [(IRIS, Grant("i", 1)), (RESNET, Grant("i", 1))]}


def test_disconnected_worker_keeps_its_leases_and_is_granted_nothing() -> None:
    recorder = Recorder("a", "b")
    recorder.coordinator.set_replicas(IRIS, ready("i"))
    recorder.coordinator.receive("a", IRIS, [SlotDemand(2, 0)])
    recorder.coordinator.receive("b", IRIS, [SlotDemand(1, 0)])
    recorder.take()
    recorder.coordinator.disconnect_worker("a")
    recorder.coordinator.set_replicas(IRIS, ready("i", slots=2))
    assert recorder.take() == {"b": [(IRIS, Grant("i", 1))]}
    recorder.coordinator.remove_worker("a")
    ledger = recorder.coordinator.ledger(IRIS)
    assert ledger is not None
    assert leased(ledger, "i", "a", "b") == 1


def test_worker_that_is_attached_again_must_register() -> None:
    recorder = Recorder("a")
    recorder.coordinator.set_replicas(IRIS, ready("i", slots=2))
    recorder.coordinator.disconnect_worker("a")
    assert not recorder.coordinator.is_connected("a")
    recorder.attach("a")
    assert recorder.coordinator.is_connected("a")
    recorder.coordinator.receive("a", IRIS, [SlotDemand(1, 0)])
    assert recorder.take() == {"a": [(IRIS, Reregister())]}
    recorder.coordinator.receive("a", IRIS, [registration(session=2, wanted_up_to=1, i=1)])
    assert recorder.take() == {"a": [(IRIS, Registered(1, 2)), (IRIS, Grant("i", 1))]}


def test_worker_that_is_not_attached_gets_no_messages() -> None:
    recorder = Recorder("a")
    recorder.coordinator.receive("stranger", IRIS, [SlotDemand(1, 0)])
    recorder.coordinator.remove_worker("stranger")
    assert recorder.take() == {}


def test_ledger_of_removed_version_is_dropped() -> None:
    recorder = Recorder("a")
    recorder.coordinator.set_versions([IRIS, RESNET])
    recorder.coordinator.set_versions([RESNET])
    assert recorder.coordinator.ledger(IRIS) is None
    assert recorder.coordinator.ledger(RESNET) is not None


def test_leases_of_unknown_version_stay_on_record_until_it_is_added() -> None:
    """Workers of other pods may use a version earlier."""
    recorder = Recorder("a")
    recorder.coordinator.receive("a", IRIS, [registration(session=2, i=1)])
    recorder.coordinator.set_versions([RESNET])
    recorder.coordinator.set_versions([IRIS, RESNET])
    recorder.coordinator.set_replicas(IRIS, ready("i"))
    assert held_by(recorder.coordinator, IRIS, "a") == {"i": 1}


def test_sweep_drops_unknown_version_without_messages_since_the_last_sweep() -> None:
    recorder = Recorder("a")
    recorder.coordinator.set_versions([RESNET])
    recorder.coordinator.sweep()
    recorder.coordinator.reconcile("a", IRIS, HeldSnapshot(1, 1, 0, {}))
    recorder.coordinator.sweep()
    assert recorder.coordinator.ledger(IRIS) is not None
    recorder.coordinator.sweep()
    assert recorder.coordinator.ledger(IRIS) is None
    assert recorder.coordinator.ledger(RESNET) is not None


def test_lease_mismatch_is_counted_and_repaired() -> None:
    recorder = Recorder("a", "b")
    coordinator = recorder.coordinator
    coordinator.set_replicas(IRIS, ready("i", slots=3))
    coordinator.receive("a", IRIS, [registration(session=2, i=3)])
    coordinator.receive("b", IRIS, [SlotDemand(1, 0)])
    recorder.take()
    assert coordinator.reconcile("a", IRIS, HeldSnapshot(1, 2, 0, {"i": 3})) == []
    assert coordinator.mismatches_repaired == 0
    assert coordinator.reconcile("a", IRIS, HeldSnapshot(1, 2, 0, {"i": 1})) == [LeaseMismatch("i", recorded=3, held=1)]
    assert coordinator.mismatches_repaired == 2
    assert (IRIS, Grant("i", 1)) in recorder.take()["b"]


def test_service_grants_nothing_between_stop_and_start() -> None:
    recorder = Recorder("a", "b")
    recorder.coordinator.stop_granting("iris")
    recorder.coordinator.set_replicas(IRIS, ready("i"))
    recorder.coordinator.set_replicas(RESNET, ready("r"))
    for key in (IRIS, RESNET):
        recorder.coordinator.receive("a", key, [SlotDemand(1, 0)])
    assert recorder.take() == {"a": [(RESNET, Grant("r", 1))]}
    recorder.coordinator.start_granting("iris")
    assert recorder.take() == {"a": [(IRIS, Grant("i", 1))]}


def test_new_version_of_a_service_that_must_not_grant_grants_nothing() -> None:
    recorder = Recorder("a")
    recorder.coordinator.stop_granting("iris")
    key = ("iris", "green")
    recorder.coordinator.set_replicas(key, ready("i"))
    recorder.coordinator.receive("a", key, [registration(wanted_up_to=1)])
    assert recorder.take() == {"a": [(key, Registered(1, 1))]}


def test_reset_ledger_has_the_replicas_but_no_leases() -> None:
    recorder = Recorder("a")
    recorder.coordinator.set_replicas(IRIS, ready("i", "j", slots=2, cordoned=["j"]))
    recorder.coordinator.receive("a", IRIS, [SlotDemand(1, 0)])
    recorder.take()
    recorder.coordinator.reset("iris")
    assert held_by(recorder.coordinator, IRIS, "a") == {}
    recorder.coordinator.receive("a", IRIS, [registration(session=2, wanted_up_to=3, served_up_to=1, i=1)])
    assert recorder.take() == {"a": [(IRIS, Registered(1, 2))]}
    recorder.coordinator.start_granting("iris")
    assert recorder.take() == {"a": [(IRIS, Grant("i", 2))]}  # `j` is still cordoned


def test_workers_that_did_not_register_until_their_pod_has_synced_hold_nothing() -> None:
    recorder = Recorder("a", "b", "c")
    recorder.coordinator.set_replicas(IRIS, ready("i", slots=3))
    for worker_id in ("a", "b"):
        recorder.coordinator.receive(worker_id, IRIS, [SlotDemand(1, 0)])
        recorder.coordinator.disconnect_from_service([worker_id], "iris")
    assert held_by(recorder.coordinator, IRIS, "a") == held_by(recorder.coordinator, IRIS, "b") == {"i": 1}
    recorder.coordinator.receive("b", IRIS, [registration(session=2, i=1)])
    recorder.coordinator.on_sync_complete(["a", "b", "c"], "iris")
    assert held_by(recorder.coordinator, IRIS, "a") == {}
    assert held_by(recorder.coordinator, IRIS, "b") == {"i": 1}
