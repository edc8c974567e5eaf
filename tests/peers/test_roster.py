"""Which of two connections stays, and what is known of peers."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from router.peers.endings import Ending
from router.peers.handshake import Party
from router.peers.roster import Roster, Standing, chooses, judge


def party(name: str, incarnation: int = 1) -> Party:
    return Party(name, f"{incarnation:016x}", "", 9091)


def test_a_router_notices_itself_and_another_one_of_its_id() -> None:
    assert judge(party("a", 1), party("a", 1), None) is Ending.SELF
    assert judge(party("a", 1), party("a", 2), None) is Ending.SAME_ID


def test_the_first_connection_is_agreed_to() -> None:
    assert judge(party("a"), party("b"), None) is None
    assert judge(party("b"), party("a"), None) is None


def test_a_second_one_with_the_same_process_is_turned_away_by_the_smaller_id_only() -> None:
    assert judge(party("a"), party("b"), party("b").incarnation) is Ending.DUPLICATE
    assert judge(party("b"), party("a"), party("a").incarnation) is None


@pytest.mark.parametrize("own", ["a", "c"])
def test_a_later_process_replaces_an_earlier_one_and_not_the_other_way(own: str) -> None:
    assert judge(party(own), party("b", 2), party("b", 1).incarnation) is None
    assert judge(party(own), party("b", 1), party("b", 2).incarnation) is Ending.STALE


def test_what_is_unreachable_is_so_since_it_was_lost() -> None:
    roster = Roster()
    roster.came_up(party("b"), 1.0)
    assert roster.unreachable() == {}
    assert roster.went_down("b", 5.0, certain=False) == 4.0
    assert not roster.not_reached("b", 6.0)
    assert roster.unreachable() == {"b": 5.0}
    roster.came_up(party("b"), 9.0)
    assert roster.unreachable() == {}


def test_a_peer_that_never_was_up_and_cannot_be_reached_is_news_once() -> None:
    roster = Roster()
    assert roster.standing("b") is None
    assert roster.not_reached("b", 1.0)
    assert not roster.not_reached("b", 2.0)
    assert roster.unreachable() == {"b": 1.0}


def test_a_peer_is_certainly_gone_once() -> None:
    roster = Roster()
    roster.came_up(party("b"), 1.0)
    roster.went_down("b", 2.0, certain=False)
    assert roster.nobody_listens("b", 3.0)
    assert not roster.nobody_listens("b", 4.0)
    assert not roster.not_reached("b", 5.0), "what is gone stays so, though its host may be gone as well by now"
    assert roster.standing("b") is Standing.GONE


def test_a_later_process_proves_that_the_unreachable_one_is_gone() -> None:
    roster = Roster()
    roster.came_up(party("b", 1), 1.0)
    roster.went_down("b", 2.0, certain=False)
    assert roster.came_up(party("b", 2), 3.0)
    roster.went_down("b", 4.0, certain=False)
    assert not roster.came_up(party("b", 2), 5.0), "the same process is back"
    roster.went_down("b", 6.0, certain=True)
    assert not roster.came_up(party("b", 3), 7.0), "that it was gone is known already"


def test_what_is_forgotten_is_as_if_never_heard_of() -> None:
    roster = Roster()
    roster.came_up(party("b", 1), 1.0)
    roster.went_down("b", 2.0, certain=False)
    roster.forget("b")
    roster.forget("b")
    assert roster.standing("b") is None
    assert roster.unreachable() == {}
    assert not roster.came_up(party("b", 2), 3.0)


class TwoDial(RuleBasedStateMachine):
    """Two routers dial one another again and again; connections break; what is sent on one connection arrives in order,
    but late. Each side acts as `mesh` does, by `judge`. However it comes, when all that was on its way has arrived,
    both are linked by the same connection, or none is."""

    def __init__(self) -> None:
        super().__init__()
        self.link: dict[str, int | None] = {"a": None, "b": None}
        self.promised: int | None = None  # by "a", which chooses
        self.on_its_way: list[tuple[int, str, str]] = []  # connection, to whom, what
        self.open: set[tuple[int, str]] = set()  # connection, at whose end
        self.count = 0

    @rule(dialler=st.sampled_from("ab"))
    def dial(self, dialler: str) -> None:
        if self.link[dialler] is None:
            self.count += 1
            self.open |= {(self.count, "a"), (self.count, "b")}
            self.say(self.count, dialler, "answer")

    @rule(data=st.data())
    def something_arrives(self, data: st.DataObject) -> None:
        heads: dict[tuple[int, str], tuple[int, str, str]] = {}
        for item in self.on_its_way:
            heads.setdefault(item[:2], item)
        if heads:
            self.arrive(data.draw(st.sampled_from(sorted(heads.values()))))

    @rule(data=st.data())
    def a_connection_breaks(self, data: st.DataObject) -> None:
        if self.open:
            connection, _ = data.draw(st.sampled_from(sorted(self.open)))
            for end in "ab":
                self.say(connection, other(end), "close")

    def arrive(self, item: tuple[int, str, str]) -> None:
        self.on_its_way.remove(item)
        connection, at, what = item
        if (connection, at) not in self.open:
            return
        match what:
            case "close":
                self.close(connection, at)
            case "answer":
                if not self.agrees(at):
                    self.close(connection, at)
                else:
                    self.promise(connection, at)
                    self.say(connection, at, "verdict")
            case "verdict":
                if not self.agrees(at):
                    self.close(connection, at)
                else:
                    self.rise(connection, at)
                    self.say(connection, at, "first word")
            case "first word":
                self.rise(connection, at)

    def agrees(self, at: str) -> bool:
        me, peer = party(at), party(other(at))
        rival = self.link[at] or (self.promised if chooses(me, peer) else None)
        return judge(me, peer, peer.incarnation if rival else None) is None

    def promise(self, connection: int, at: str) -> None:
        if at == "a":
            self.promised = connection

    def rise(self, connection: int, at: str) -> None:
        former = self.link[at]
        if at == "a":
            assert former is None, "the one that chooses replaces no link to the same process"
            assert self.promised in (None, connection)
            self.promised = None
        if former is not None:
            self.close(former, at)
        self.link[at] = connection

    def close(self, connection: int, at: str) -> None:
        self.open.discard((connection, at))
        self.say(connection, at, "close")
        if self.link[at] == connection:
            self.link[at] = None
        if at == "a" and self.promised == connection:
            self.promised = None

    def say(self, connection: int, at: str, what: str) -> None:
        self.on_its_way.append((connection, other(at), what))

    def teardown(self) -> None:
        while self.on_its_way:
            self.arrive(self.on_its_way[0])
        assert self.link["a"] == self.link["b"]
        assert self.promised is None


def other(name: str) -> str:
    return "b" if name == "a" else "a"


TestTwoDial = TwoDial.TestCase
