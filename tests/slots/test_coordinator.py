"""The coordinator: messages reach the ledger of their version, and answers the front-end they are for."""

from router.services import VersionKey
from router.slots.coordinator import Coordinator
from router.slots.ledger import Leak
from router.slots.messages import Grant, Hello, Holds, Recall, Return, Revoke, SayHello, ToHolder, Wants, Welcome

IRIS: VersionKey = ("iris", "default")
RESNET: VersionKey = ("resnet", "blue")


class Desk:
    """A coordinator, and what it has said to each front-end since it was last asked."""

    def __init__(self, *front_ends: str) -> None:
        self.coordinator = Coordinator()
        self.said: dict[str, list[tuple[VersionKey, ToHolder]]] = {}
        for front_end in front_ends:
            self.attach(front_end)
            for key in (IRIS, RESNET):
                self.coordinator.receive(front_end, key, [hello()])
        self.said_to_all()

    def attach(self, front_end: str) -> None:
        said = self.said[front_end] = []
        self.coordinator.attach(front_end, lambda key, message: said.append((key, message)))

    def said_to_all(self) -> dict[str, list[tuple[VersionKey, ToHolder]]]:
        heard = {front_end: [*said] for front_end, said in self.said.items() if said}
        for said in self.said.values():
            said.clear()
        return heard


def hello(**held: int) -> Hello:
    return Hello(1, 1, held, frozenset(), 0, 0)


def test_each_version_has_a_ledger_of_its_own() -> None:
    desk = Desk("a", "b")
    desk.coordinator.set_replicas(IRIS, {"i": 1})
    desk.coordinator.set_replicas(RESNET, {"r": 1})
    desk.coordinator.receive("a", IRIS, [Wants(1, 0)])
    desk.coordinator.receive("b", RESNET, [Wants(1, 0)])
    assert desk.said_to_all() == {"a": [(IRIS, Grant("i", 1))], "b": [(RESNET, Grant("r", 1))]}


def test_whoever_is_concerned_hears_of_it() -> None:
    desk = Desk("a", "b")
    desk.coordinator.set_replicas(IRIS, {"i": 1})
    desk.coordinator.receive("a", IRIS, [Wants(1, 0)])
    desk.coordinator.receive("b", IRIS, [Wants(1, 0)])
    assert desk.said_to_all() == {"a": [(IRIS, Grant("i", 1)), (IRIS, Recall(1, 0))]}
    desk.coordinator.receive("a", IRIS, [Return("i", 1)])
    assert desk.said_to_all() == {"b": [(IRIS, Grant("i", 1))]}


def test_messages_of_one_delivery_count_as_one_change() -> None:
    desk = Desk("a", "b")
    desk.coordinator.set_replicas(IRIS, {"i": 1})
    desk.coordinator.receive("a", IRIS, [Wants(1, 0)])
    desk.coordinator.receive("b", IRIS, [Wants(1, 0)])
    desk.said_to_all()
    desk.coordinator.receive("b", IRIS, [Wants(1, 1), Wants(2, 1)])
    assert desk.said_to_all() == {}


def test_hello_may_come_before_replicas_are_known() -> None:
    desk = Desk("a")
    key = ("new", "default")
    desk.coordinator.receive("a", key, [hello(i=1)])
    assert desk.said_to_all() == {"a": [(key, Welcome(1, 1))]}
    desk.coordinator.set_replicas(key, {"i": 1})
    ledger = desk.coordinator.ledger(key)
    assert ledger is not None
    assert ledger.out("i") == 1


def test_cordoned_replicas_are_revoked_and_granted_again_when_they_are_taken_back() -> None:
    desk = Desk("a")
    slots = {"i": 1, "j": 1}
    desk.coordinator.set_replicas(IRIS, slots, cordoned=["j"])
    desk.coordinator.receive("a", IRIS, [Wants(2, 0)])
    assert desk.said_to_all() == {"a": [(IRIS, Grant("i", 1))]}
    desk.coordinator.set_replicas(IRIS, slots, cordoned=["i", "j"])
    assert desk.said_to_all() == {"a": [(IRIS, Revoke("i"))]}
    desk.coordinator.set_replicas(IRIS, slots, cordoned=["i"])
    assert desk.said_to_all() == {"a": [(IRIS, Grant("j", 2))]}


def test_what_a_detached_front_end_held_of_any_version_is_free() -> None:
    desk = Desk("a", "b")
    for key in (IRIS, RESNET):
        desk.coordinator.set_replicas(key, {"i": 1})
        desk.coordinator.receive("a", key, [Wants(1, 0)])
        desk.coordinator.receive("b", key, [Wants(1, 0)])
    desk.said_to_all()
    desk.coordinator.detach("a")
    assert desk.said_to_all() == {"b": [(IRIS, Grant("i", 1)), (RESNET, Grant("i", 1))]}


def test_disconnected_front_end_keeps_its_leases_but_is_granted_none() -> None:
    desk = Desk("a", "b")
    desk.coordinator.set_replicas(IRIS, {"i": 1})
    desk.coordinator.receive("a", IRIS, [Wants(2, 0)])
    desk.coordinator.receive("b", IRIS, [Wants(1, 0)])
    desk.said_to_all()
    desk.coordinator.disconnect("a")
    desk.coordinator.set_replicas(IRIS, {"i": 2})
    assert desk.said_to_all() == {"b": [(IRIS, Grant("i", 1))]}
    desk.coordinator.detach("a")
    ledger = desk.coordinator.ledger(IRIS)
    assert ledger is not None
    assert ledger.out("i") == 1


def test_front_end_that_is_attached_again_begins_with_hello() -> None:
    desk = Desk("a")
    desk.coordinator.set_replicas(IRIS, {"i": 2})
    desk.coordinator.disconnect("a")
    assert not desk.coordinator.is_attached("a")
    desk.attach("a")
    assert desk.coordinator.is_attached("a")
    desk.coordinator.receive("a", IRIS, [Wants(1, 0)])
    assert desk.said_to_all() == {"a": [(IRIS, SayHello())]}
    desk.coordinator.receive("a", IRIS, [Hello(1, 2, {"i": 1}, frozenset(), 1, 0)])
    assert desk.said_to_all() == {"a": [(IRIS, Welcome(1, 2)), (IRIS, Grant("i", 1))]}


def test_nothing_is_said_to_who_is_not_attached() -> None:
    desk = Desk("a")
    desk.coordinator.receive("stranger", IRIS, [Wants(1, 0)])
    desk.coordinator.detach("stranger")
    assert desk.said_to_all() == {}


def test_version_that_is_gone_has_no_ledger() -> None:
    desk = Desk("a")
    desk.coordinator.set_versions([IRIS, RESNET])
    desk.coordinator.set_versions([RESNET])
    assert desk.coordinator.ledger(IRIS) is None
    assert desk.coordinator.ledger(RESNET) is not None


def test_version_that_is_not_known_yet_stays_on_record() -> None:
    """Others may learn of it earlier, and say what they hold."""
    desk = Desk("a")
    desk.coordinator.receive("a", IRIS, [Hello(1, 2, {"i": 1}, frozenset(), 0, 0)])
    desk.coordinator.set_versions([RESNET])
    desk.coordinator.set_versions([IRIS, RESNET])
    desk.coordinator.set_replicas(IRIS, {"i": 1})
    ledger = desk.coordinator.ledger(IRIS)
    assert ledger is not None
    assert ledger.held_by("a") == {"i": 1}


def test_unknown_version_of_which_nobody_speaks_any_more_is_forgotten() -> None:
    desk = Desk("a")
    desk.coordinator.set_versions([RESNET])
    desk.coordinator.sweep()
    desk.coordinator.reconcile("a", IRIS, Holds(1, 1, 0, {}))
    desk.coordinator.sweep()
    assert desk.coordinator.ledger(IRIS) is not None
    desk.coordinator.sweep()
    assert desk.coordinator.ledger(IRIS) is None
    assert desk.coordinator.ledger(RESNET) is not None


def test_a_leak_is_counted_and_mended() -> None:
    desk = Desk("a", "b")
    desk.coordinator.set_replicas(IRIS, {"i": 3})
    desk.coordinator.receive("a", IRIS, [Hello(1, 2, {"i": 3}, frozenset(), 0, 0)])
    desk.coordinator.receive("b", IRIS, [Wants(1, 0)])
    desk.said_to_all()
    assert desk.coordinator.reconcile("a", IRIS, Holds(1, 2, 0, {"i": 3})) == []
    assert desk.coordinator.leaks_repaired == 0
    assert desk.coordinator.reconcile("a", IRIS, Holds(1, 2, 0, {"i": 1})) == [Leak("i", recorded=3, held=1)]
    assert desk.coordinator.leaks_repaired == 2
    assert (IRIS, Grant("i", 1)) in desk.said_to_all()["b"]


def test_service_of_another_owner_keeps_record_and_grants_nothing_until_it_may() -> None:
    desk = Desk("a", "b")
    desk.coordinator.stop_granting("iris")
    desk.coordinator.set_replicas(IRIS, {"i": 1})
    desk.coordinator.set_replicas(RESNET, {"r": 1})
    for key in (IRIS, RESNET):
        desk.coordinator.receive("a", key, [Wants(1, 0)])
    assert desk.said_to_all() == {"a": [(RESNET, Grant("r", 1))]}
    desk.coordinator.begin_granting("iris")
    assert desk.said_to_all() == {"a": [(IRIS, Grant("i", 1))]}


def test_version_that_is_new_keeps_to_what_its_service_may() -> None:
    desk = Desk("a")
    desk.coordinator.stop_granting("iris")
    key = ("iris", "green")
    desk.coordinator.set_replicas(key, {"i": 1})
    desk.coordinator.receive("a", key, [Hello(1, 1, {}, frozenset(), 1, 0)])
    assert desk.said_to_all() == {"a": [(key, Welcome(1, 1))]}


def test_ledger_that_starts_over_knows_the_replicas_but_no_front_end() -> None:
    desk = Desk("a")
    desk.coordinator.set_replicas(IRIS, {"i": 2, "j": 2}, cordoned=["j"])
    desk.coordinator.receive("a", IRIS, [Wants(1, 0)])
    desk.said_to_all()
    desk.coordinator.start_over("iris")
    ledger = desk.coordinator.ledger(IRIS)
    assert ledger is not None
    assert ledger.out("i") == 0
    assert ledger.is_cordoned("j")
    desk.coordinator.receive("a", IRIS, [Hello(1, 2, {"i": 1}, frozenset(), 2, 1)])
    assert desk.said_to_all() == {"a": [(IRIS, Welcome(1, 2))]}
    desk.coordinator.begin_granting("iris")
    assert desk.said_to_all() == {"a": [(IRIS, Grant("i", 2))]}


def test_front_ends_that_tell_nothing_once_all_is_told_hold_nothing() -> None:
    desk = Desk("a", "b", "c")
    desk.coordinator.set_replicas(IRIS, {"i": 3})
    for front_end in ("a", "b"):
        desk.coordinator.receive(front_end, IRIS, [Wants(1, 0)])
        desk.coordinator.lose([front_end], "iris")
    ledger = desk.coordinator.ledger(IRIS)
    assert ledger is not None
    assert ledger.out("i") == 2
    desk.coordinator.receive("b", IRIS, [Hello(1, 2, {"i": 1}, frozenset(), 0, 0)])
    desk.coordinator.has_told_all(["a", "b", "c"], "iris")
    assert ledger.held_by("a") == {}
    assert ledger.held_by("b") == {"i": 1}
