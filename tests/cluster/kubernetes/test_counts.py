"""What number of replicas is written, and who else writes it."""

from dataclasses import replace

from router.cluster.kubernetes.counts import ROUNDS, ROUNDS_SECONDS, Count, Foreign, Patch
from router.cluster.kubernetes.objects import Deployment
from router.cluster.kubernetes.reflector import PAUSES
from tests.cluster.kubernetes.things import deployment


def has(replicas: int, version: int, by: str = "") -> Deployment:
    return replace(deployment(), replicas=replicas, resource_version=str(version), replicas_by=by)


def written(replicas: int, version: int) -> Count:
    """A number that this router has written."""
    count = Count(has(1, 1))
    count.want(replicas, ())
    count.sending(Patch(replicas, "1", ()))
    count.written(replicas, str(version))
    return count


def test_what_is_wanted_is_written_with_the_version_that_it_replaces() -> None:
    count = Count(has(1, 7))
    assert count.due(0.0) is None
    count.want(3, ())
    assert count.due(0.0) == Patch(3, "7", ())
    count.sending(Patch(3, "7", ()))
    count.written(3, "8")
    assert count.due(0.0) is None


def test_who_goes_is_named_when_the_number_falls_only() -> None:
    count = Count(has(3, 7))
    count.want(2, ("a",))
    assert count.due(0.0) == Patch(2, "7", ("a",))
    count.want(4, ("a",))
    assert count.due(0.0) == Patch(4, "7", ())


def test_the_newest_version_is_replaced() -> None:
    count = Count(has(1, 7))
    count.want(3, ())
    assert count.seen(has(1, 9), 0.0) is None
    assert count.due(0.0) == Patch(3, "9", ())


def test_ones_own_write_is_no_rivals_whether_its_answer_or_the_watch_is_first() -> None:
    count = Count(has(1, 7))
    count.want(3, ())
    count.sending(Patch(3, "7", ()))
    assert count.seen(has(3, 8), 0.0) is None
    count.written(3, "8")
    assert count.seen(has(3, 8, "azureml-fe"), 0.0) is None
    other = Count(has(1, 7))  # of a router that does not lead
    assert other.seen(has(3, 8, "azureml-fe"), 0.0) is None


def test_a_late_report_is_no_rivals_write() -> None:
    count = written(3, 9)
    assert count.seen(has(1, 8), 0.0) is None
    assert count.replicas == 3


def test_whoever_else_writes_is_named() -> None:
    assert written(3, 9).seen(has(20, 10, "kubectl"), 0.0) == Foreign("kubectl", 3, 20, 1)
    assert written(3, 9).seen(has(20, 10), 0.0) == Foreign("somebody unknown", 3, 20, 1)
    assert Count(has(1, 7)).seen(has(5, 8, "helm"), 0.0) == Foreign("helm", 1, 5, 0)


def test_one_that_undoes_each_write_is_counted_and_stood_back_from() -> None:
    count = written(3, 9)
    rounds = []
    for number in range(ROUNDS):
        foreign = count.seen(has(1, 10 + 2 * number, "keda"), float(number))
        assert foreign is not None
        rounds.append(foreign.rounds)
        count.sending(Patch(3, "", ()))
        count.written(3, str(11 + 2 * number))
    assert rounds == [1, 2, 3]
    count.want(5, ())
    count.stand_back(100.0)
    count.want(5, ())
    assert count.due(99.0) is None
    assert count.due(100.0) is not None


def test_a_rival_of_long_ago_is_forgotten() -> None:
    count = written(3, 9)
    count.seen(has(1, 10, "hand"), 0.0)
    count.sending(Patch(3, "", ()))
    count.written(3, "11")
    foreign = count.seen(has(2, 12, "hand"), ROUNDS_SECONDS + 1)
    assert foreign is not None
    assert foreign.rounds == 1


def test_refusals_are_retried_with_pauses_that_grow_and_what_is_new_at_once() -> None:
    count = Count(has(1, 7))
    count.want(3, ())
    count.refused(10.0)
    pause = count.due(10.0)
    assert isinstance(pause, float)
    assert abs(pause - PAUSES[0]) < 1e-9
    assert count.due(10.0 + PAUSES[0]) == Patch(3, "7", ())
    count.refused(11.0, least=5.0)
    assert count.due(15.9) is not None
    assert not isinstance(count.due(15.9), Patch)
    count.want(4, ())
    assert count.due(11.0) == Patch(4, "7", ())


def test_after_a_conflict_the_number_is_read() -> None:
    count = written(3, 9)
    assert count.read(3, "12", 0.0) is None
    count.want(4, ())
    assert count.due(0.0) == Patch(4, "12", ())
    assert count.read(7, "13", 0.0) == Foreign("somebody unknown", 3, 7, 1)
    assert count.due(0.0) == Patch(4, "13", ())
