"""When a local replica is ready, when one may be started, and which one goes."""

from hypothesis import given, settings
from hypothesis import strategies as st

from router.cluster.local.health import FIRST_DELAY, LONGEST_DELAY, STABLE_SECONDS, Backoff, Candidate, Health, plan
from router.services import ReplicaState

STARTING, READY, DRAINING = ReplicaState.STARTING, ReplicaState.READY, ReplicaState.DRAINING


def turns(results: str, success_threshold: int, failure_threshold: int) -> str:
    """Readiness after each result: `+` or `-`."""
    health = Health()
    shown = ""
    for result in results:
        before = health.ready
        turned = health.seen(result == "+", success_threshold=success_threshold, failure_threshold=failure_threshold)
        assert turned == (health.ready != before)
        shown += "+" if health.ready else "-"
    return shown


def test_readiness_turns_after_so_many_results_in_a_row() -> None:
    assert turns("-+++---+", 1, 3) == "-+++++-+"
    assert turns("++-+++", 3, 1) == "-----+"
    assert turns("+--+--+---", 1, 3) == "+++++++++-"


def test_failed_starts_are_retried_less_and_less_often() -> None:
    backoff, now, delays = Backoff(), 100.0, []
    for _ in range(9):
        delays.append(backoff.died(now, None))
        now += delays[-1] + 0.3
    assert delays == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]
    assert (delays[0], delays[-1]) == (FIRST_DELAY, LONGEST_DELAY)


def test_a_ready_replica_that_dies_is_replaced_at_once_but_not_time_and_again() -> None:
    backoff = Backoff()
    assert [backoff.died(now, 2.0) for now in (10.0, 20.0, 30.0, 40.0)] == [0.0, 0.5, 1.0, 2.0]


def test_replicas_that_fail_together_count_as_one_failure() -> None:
    backoff = Backoff()
    assert [backoff.died(now, None) for now in (10.0, 10.125, 10.25)] == [0.5, 0.375, 0.25]
    assert backoff.died(10.6, None) == 1.0


def test_a_replica_that_lasts_ends_the_count_of_failures() -> None:
    backoff = Backoff()
    for now in (10.0, 20.0, 30.0):
        backoff.died(now, None)
    backoff.thrives(started_at=29.0, ready_for=1000.0)  # started before the last failure: says nothing of it
    backoff.thrives(started_at=31.0, ready_for=STABLE_SECONDS - 1)  # has not lasted yet
    assert backoff.died(200.0, None) == 4.0
    backoff.thrives(started_at=201.0, ready_for=STABLE_SECONDS)
    assert backoff.died(300.0, None) == FIRST_DELAY


def test_a_replica_that_lasted_is_replaced_at_once_even_while_others_fail() -> None:
    backoff = Backoff()
    for now in (10.0, 20.0, 30.0):
        backoff.died(now, None)
    assert backoff.died(30.5, STABLE_SECONDS) == 0.0


def replicas(text: str) -> list[Candidate]:
    """`s` starting, `r` ready, `d` draining; a capital letter is one of an older program. Ids are a, b, c..."""
    states = {"s": STARTING, "r": READY, "d": DRAINING}
    return [
        Candidate(chr(ord("a") + number), states[letter.lower()], letter.islower())
        for number, letter in enumerate(text)
    ]


def step(text: str, wanted: int, remove: str = "", held_back: int = 0) -> str:
    """`+2` for two to start, `-ab` for those to stop."""
    decided = plan(replicas(text), wanted, remove=remove, held_back=held_back)
    return (f"+{decided.start}" if decided.start else "") + (f"-{''.join(decided.stop)}" if decided.stop else "")


def test_what_is_missing_is_started_unless_it_is_held_back() -> None:
    assert step("", 2) == "+2"
    assert step("rs", 2) == ""
    assert step("rd", 2) == "+1"
    assert step("r", 4, held_back=2) == "+1"
    assert step("r", 2, held_back=3) == ""


def test_first_go_the_named_ones_then_those_not_ready_then_the_youngest() -> None:
    assert step("rrsr", 3) == "-c"
    assert step("rrrr", 2) == "-dc"
    assert step("rrsr", 2, remove="a") == "-ac"
    assert step("rrrr", 3, remove="bc") == "-c"
    assert step("rr", 2, remove="ab") == ""
    assert step("rsd", 0) == "-ba"


def test_replicas_of_an_older_program_are_replaced_one_by_one_and_never_before_a_new_one_is_ready() -> None:
    assert step("RR", 2) == "+1"
    assert step("RRs", 2) == ""
    assert step("RRr", 2) == "-b"
    assert step("Rdr", 2) == "+1"
    assert step("Rrs", 2) == ""
    assert step("Rrr", 2) == "-a"
    assert step("rr", 2) == ""


def test_an_older_program_that_does_not_start_is_given_up_at_once() -> None:
    assert step("S", 1) == "+1-a"
    assert step("SSr", 1) == "-ab"
    assert step("S", 1, held_back=1) == "-a"


def test_a_new_program_that_does_not_start_leaves_the_older_one_in_service() -> None:
    assert step("RR", 2, held_back=1) == ""


def test_a_replacement_under_way_survives_a_smaller_number() -> None:
    assert step("RRRs", 2) == "-c"
    assert step("Rs", 1) == ""
    assert step("RRs", 0) == "-bac"


@settings(max_examples=200, deadline=None)
@given(
    wanted=st.integers(1, 5),
    start=st.text(alphabet="srdSRD", max_size=8),
    choices=st.lists(st.booleans(), min_size=200, max_size=200),
)
def test_every_beginning_leads_to_the_wanted_number_of_the_current_program(
    wanted: int, start: str, choices: list[bool]
) -> None:
    """Replicas become ready and drain in any order. Service is never given up for it: once as many are ready as
    wanted, it stays so; and never more than one runs above the wanted number, or above what there was."""
    world = {replica.id: replica for replica in replicas(start)}
    number, most, picks = 0, max(wanted + 1, len(start)), iter(choices)
    served = 0
    for _ in range(60):
        decided = plan(tuple(world.values()), wanted)
        for gone in decided.stop:
            world[gone] = Candidate(gone, DRAINING, world[gone].current)
        for _ in range(decided.start):
            number += 1
            world[f"new-{number}"] = Candidate(f"new-{number}", STARTING, True)
        live = [replica for replica in world.values() if replica.state is not DRAINING]
        ready = sum(replica.state is READY for replica in live)
        assert len(live) <= most
        assert ready >= min(served, wanted)
        served = ready
        movable = [replica for replica in world.values() if replica.state is not READY]
        if not movable:
            break
        moved = movable[0] if next(picks, True) else movable[-1]
        if moved.state is DRAINING:
            del world[moved.id]
        else:
            world[moved.id] = Candidate(moved.id, READY, moved.current)
    final = [replica for replica in world.values() if replica.state is not DRAINING]
    assert len(final) == wanted
    assert all(replica.current and replica.state is READY for replica in final)
