"""Which of two connections is kept, and the status of peers."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from router.peers.close_reason import CloseReason
from router.peers.handshake import PeerIdentity
from router.peers.peer_table import PeerStatus, PeerTable, is_tie_breaker, resolve_duplicate


def peer(peer_id: str, incarnation: int = 1) -> PeerIdentity:
    return PeerIdentity(peer_id, f"{incarnation:016x}", "", 9091)


def test_router_detects_itself_and_another_router_with_its_id() -> None:
    assert resolve_duplicate(peer("a", 1), peer("a", 1), None) is CloseReason.SELF
    assert resolve_duplicate(peer("a", 1), peer("a", 2), None) is CloseReason.SAME_ID


def test_first_connection_is_kept() -> None:
    assert resolve_duplicate(peer("a"), peer("b"), None) is None
    assert resolve_duplicate(peer("b"), peer("a"), None) is None


def test_second_connection_with_the_same_process_is_refused_only_by_the_router_with_the_smaller_id() -> None:
    assert resolve_duplicate(peer("a"), peer("b"), peer("b").incarnation) is CloseReason.DUPLICATE
    assert resolve_duplicate(peer("b"), peer("a"), peer("a").incarnation) is None


@pytest.mark.parametrize("own", ["a", "c"])
def test_later_process_replaces_an_earlier_one_and_not_vice_versa(own: str) -> None:
    assert resolve_duplicate(peer(own), peer("b", 2), peer("b", 1).incarnation) is None
    assert resolve_duplicate(peer(own), peer("b", 1), peer("b", 2).incarnation) is CloseReason.STALE


def test_peer_is_unreachable_since_its_link_was_lost() -> None:
    table = PeerTable()
    table.mark_up(peer("b"), 1.0)
    assert table.unreachable() == {}
    assert table.mark_down("b", 5.0, process_ended=False) == 4.0
    assert not table.mark_unreachable("b", 6.0)
    assert table.unreachable() == {"b": 5.0}
    table.mark_up(peer("b"), 9.0)
    assert table.unreachable() == {}


def test_peer_that_never_was_up_becomes_unreachable_once() -> None:
    table = PeerTable()
    assert table.status("b") is None
    assert table.mark_unreachable("b", 1.0)
    assert not table.mark_unreachable("b", 2.0)
    assert table.unreachable() == {"b": 1.0}


def test_peer_becomes_gone_once() -> None:
    table = PeerTable()
    table.mark_up(peer("b"), 1.0)
    table.mark_down("b", 2.0, process_ended=False)
    assert table.mark_gone("b", 3.0)
    assert not table.mark_gone("b", 4.0)
    assert not table.mark_unreachable("b", 5.0), "a gone peer stays gone, even if its host stops responding"
    assert table.status("b") is PeerStatus.GONE


def test_later_process_proves_that_the_unreachable_one_has_ended() -> None:
    table = PeerTable()
    table.mark_up(peer("b", 1), 1.0)
    table.mark_down("b", 2.0, process_ended=False)
    assert table.mark_up(peer("b", 2), 3.0)
    table.mark_down("b", 4.0, process_ended=False)
    assert not table.mark_up(peer("b", 2), 5.0), "same process"
    table.mark_down("b", 6.0, process_ended=True)
    assert not table.mark_up(peer("b", 3), 7.0), "already known to have ended"


def test_forgotten_peer_has_no_status() -> None:
    table = PeerTable()
    table.mark_up(peer("b", 1), 1.0)
    table.mark_down("b", 2.0, process_ended=False)
    table.forget("b")
    table.forget("b")
    assert table.status("b") is None
    assert table.unreachable() == {}
    assert not table.mark_up(peer("b", 2), 3.0)


class MutualDialing(RuleBasedStateMachine):
    """Two routers dial each other, connections break, and data arrives in order but late.

    Each side uses `resolve_duplicate` like `mesh`. Once all data has arrived, either both sides have the same
    connection as their link, or neither has a link.
    """

    def __init__(self) -> None:
        super().__init__()
        self.link: dict[str, int | None] = {"a": None, "b": None}
        self.pending_up: int | None = None  # connection of "a", the tie-breaker
        self.in_transit: list[tuple[int, str, str]] = []  # connection, receiver, data
        self.open: set[tuple[int, str]] = set()  # connection, side
        self.connections = 0

    @rule(side=st.sampled_from("ab"))
    def dial(self, side: str) -> None:
        if self.link[side] is None:
            self.connections += 1
            self.open |= {(self.connections, "a"), (self.connections, "b")}
            self.send(self.connections, side, "response")

    @rule(data=st.data())
    def deliver_next_data(self, data: st.DataObject) -> None:
        first: dict[tuple[int, str], tuple[int, str, str]] = {}
        for item in self.in_transit:
            first.setdefault(item[:2], item)
        if first:
            self.deliver(data.draw(st.sampled_from(sorted(first.values()))))

    @rule(data=st.data())
    def reset_a_connection(self, data: st.DataObject) -> None:
        if self.open:
            connection, _ = data.draw(st.sampled_from(sorted(self.open)))
            for side in "ab":
                self.send(connection, other(side), "close")

    def deliver(self, item: tuple[int, str, str]) -> None:
        self.in_transit.remove(item)
        connection, side, data = item
        if (connection, side) not in self.open:
            return
        match data:
            case "close":
                self.close(connection, side)
            case "response":
                if not self.accepts(side):
                    self.close(connection, side)
                else:
                    if side == "a":
                        self.pending_up = connection
                    self.send(connection, side, "verdict")
            case "verdict":
                if not self.accepts(side):
                    self.close(connection, side)
                else:
                    self.go_up(connection, side)
                    self.send(connection, side, "first frame")
            case "first frame":
                self.go_up(connection, side)

    def accepts(self, side: str) -> bool:
        own, remote = peer(side), peer(other(side))
        connected = self.link[side] or (self.pending_up if is_tie_breaker(own, remote) else None)
        return resolve_duplicate(own, remote, remote.incarnation if connected else None) is None

    def go_up(self, connection: int, side: str) -> None:
        previous = self.link[side]
        if side == "a":
            assert previous is None, "the tie-breaker never replaces a link with the same process"
            assert self.pending_up in (None, connection)
            self.pending_up = None
        if previous is not None:
            self.close(previous, side)
        self.link[side] = connection

    def close(self, connection: int, side: str) -> None:
        self.open.discard((connection, side))
        self.send(connection, side, "close")
        if self.link[side] == connection:
            self.link[side] = None
        if side == "a" and self.pending_up == connection:
            self.pending_up = None

    def send(self, connection: int, sender: str, data: str) -> None:
        self.in_transit.append((connection, other(sender), data))

    def teardown(self) -> None:
        while self.in_transit:
            self.deliver(self.in_transit[0])
        assert self.link["a"] == self.link["b"]
        assert self.pending_up is None


def other(side: str) -> str:
    return "b" if side == "a" else "a"


TestMutualDialing = MutualDialing.TestCase
