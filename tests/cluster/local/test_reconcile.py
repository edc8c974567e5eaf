"""Which replicas of a version are started and stopped next."""

from hypothesis import given, settings
from hypothesis import strategies as st

from router.cluster.local.reconcile import Candidate, plan_next_step
from router.model.services import ReplicaState

STARTING, READY, DRAINING = ReplicaState.STARTING, ReplicaState.READY, ReplicaState.DRAINING


def candidates(text: str) -> list[Candidate]:
    """`s` starting, `r` ready, `d` draining; a capital letter is an outdated replica. Ids are a, b, c..."""
    states = {"s": STARTING, "r": READY, "d": DRAINING}
    return [
        Candidate(chr(ord("a") + index), states[letter.lower()], is_current=letter.islower())
        for index, letter in enumerate(text)
    ]


def next_step(text: str, wanted: int, remove: str = "", held_back: int = 0) -> str:
    """The plan as text: `+2` to start two replicas, `-ab` to stop a and b."""
    plan = plan_next_step(candidates(text), wanted, remove=remove, held_back=held_back)
    return (f"+{plan.start}" if plan.start else "") + (f"-{''.join(plan.stop)}" if plan.stop else "")


def test_missing_replicas_are_started_unless_held_back() -> None:
    assert next_step("", 2) == "+2"
    assert next_step("rs", 2) == ""
    assert next_step("rd", 2) == "+1"
    assert next_step("r", 4, held_back=2) == "+1"
    assert next_step("r", 2, held_back=3) == ""


def test_removed_replicas_stop_first_then_those_not_ready_then_the_youngest() -> None:
    assert next_step("rrsr", 3) == "-c"
    assert next_step("rrrr", 2) == "-dc"
    assert next_step("rrsr", 2, remove="a") == "-ac"
    assert next_step("rrrr", 3, remove="bc") == "-c"
    assert next_step("rr", 2, remove="ab") == ""
    assert next_step("rsd", 0) == "-ba"


def test_outdated_replicas_are_replaced_one_by_one_after_the_new_one_is_ready() -> None:
    assert next_step("RR", 2) == "+1"
    assert next_step("RRs", 2) == ""
    assert next_step("RRr", 2) == "-b"
    assert next_step("Rdr", 2) == "+1"
    assert next_step("Rrs", 2) == ""
    assert next_step("Rrr", 2) == "-a"
    assert next_step("rr", 2) == ""


def test_outdated_replica_that_is_not_ready_stops_at_once() -> None:
    assert next_step("S", 1) == "+1-a"
    assert next_step("SSr", 1) == "-ab"
    assert next_step("S", 1, held_back=1) == "-a"


def test_outdated_replicas_stay_while_new_ones_cannot_start() -> None:
    assert next_step("RR", 2, held_back=1) == ""


def test_starting_replacement_survives_scale_down() -> None:
    assert next_step("RRRs", 2) == "-c"
    assert next_step("Rs", 1) == ""
    assert next_step("RRs", 0) == "-bac"


@settings(max_examples=200)
@given(
    wanted=st.integers(1, 5),
    initial=st.text(alphabet="srdSRD", max_size=8),
    choices=st.lists(st.booleans(), min_size=200, max_size=200),
)
def test_repeated_steps_reach_the_wanted_number_of_current_replicas(
    wanted: int, initial: str, choices: list[bool]
) -> None:
    """Replicas become ready and finish draining in any order. Once the wanted number is ready, it stays ready.

    The number of replicas never exceeds `wanted` + 1, or the initial number if that is higher.
    """
    replicas = {replica.id: replica for replica in candidates(initial)}
    started, limit, picks = 0, max(wanted + 1, len(initial)), iter(choices)
    ready_before = 0
    for _ in range(60):
        plan = plan_next_step(tuple(replicas.values()), wanted)
        for stopped in plan.stop:
            replicas[stopped] = Candidate(stopped, DRAINING, replicas[stopped].is_current)
        for _ in range(plan.start):
            started += 1
            replicas[f"new-{started}"] = Candidate(f"new-{started}", STARTING, is_current=True)
        live = [replica for replica in replicas.values() if replica.state is not DRAINING]
        ready = sum(replica.state is READY for replica in live)
        assert len(live) <= limit
        assert ready >= min(ready_before, wanted)
        ready_before = ready
        unsettled = [replica for replica in replicas.values() if replica.state is not READY]
        if not unsettled:
            break
        progressed = unsettled[0] if next(picks, True) else unsettled[-1]
        if progressed.state is DRAINING:
            del replicas[progressed.id]
        else:
            replicas[progressed.id] = Candidate(progressed.id, READY, progressed.is_current)
    final = [replica for replica in replicas.values() if replica.state is not DRAINING]
    assert len(final) == wanted
    assert all(replica.is_current and replica.state is READY for replica in final)
