"""The self-scaler, rule by rule."""

from dataclasses import replace

import pytest

from router.scaling.load import Seen
from router.scaling.self_scaler import CHANGES, Decision, Kind, Policy, SelfScaler, Size

POLICY = Policy(
    steps=(1, 2, 4), min_pods=2, max_pods=4, percent=95, slow_seconds=0.003, busy_cpu=0.1, down_cpu=0.4,
    scale_in_cpu=0.3, up_seconds=15, down_seconds=120, no_room_seconds=300,
)  # fmt: skip
SMALLEST = Size(1, 2)


class Story:
    """A self-scaler, its time, and a cluster that does what it is told at once."""

    def __init__(self, size: Size = SMALLEST, **settings: object) -> None:
        self.scaler = SelfScaler(replace(POLICY, **settings))  # type: ignore[arg-type]
        self.size = size
        self.now = 0.0
        self.pause = 1.0

    def look(self, *, slow: bool = False, use: float = 0.5, pods: int | None = None, **facts: float) -> Decision:
        """One look, `pause` seconds after the last; `use` is the share of the CPU."""
        self.now += self.pause
        pods = self.size.pods if pods is None else pods
        route_time = 0.02 if slow else 0.0002
        seen = Seen(15.0, 1000, route_time, 0.001, use * self.size.total, self.size.total, pods)
        return self.scaler.observe(self.now, replace(seen, **facts), self.size)  # type: ignore[arg-type]

    def until(self, *kinds: Kind, seconds: int = 600, **facts: float) -> Decision:
        """Look until a decision of these kinds is carried out; any other change fails."""
        for _ in range(seconds):
            decision = self.look(**facts)  # type: ignore[arg-type]
            if decision.target is not None:
                assert decision.kind in kinds, decision
                self.does(decision)
                return decision
        raise AssertionError(f"no {kinds} within {seconds} s; {decision}")

    def does(self, decision: Decision) -> None:
        assert decision.target is not None
        self.size = decision.target
        self.scaler.done(self.now)

    def stays(self, seconds: int, **facts: float) -> Decision:
        for _ in range(seconds):
            decision = self.look(**facts)  # type: ignore[arg-type]
            assert decision.target is None, decision
        return decision


# Up.


def test_slow_requests_get_one_step_more_cpu() -> None:
    decision = Story().look(slow=True, use=0.9)
    assert (decision.kind, decision.target) == (Kind.MORE_CPU, Size(2, 2))
    assert decision.reason == (
        "route time p95 20 ms, event-loop lag p95 1 ms against 3 ms, CPU use 90% (1.80 of 2): 1 to 2 CPUs"
    )


def test_a_late_event_loop_counts_as_slow() -> None:
    assert Story().look(loop_lag=0.004).kind is Kind.MORE_CPU


def test_vertical_first_then_horizontal_then_the_limit() -> None:
    story = Story()
    sizes = [story.until(Kind.MORE_CPU, Kind.MORE_PODS, slow=True, use=0.9).target for _ in range(4)]
    assert sizes == [Size(2, 2), Size(4, 2), Size(4, 3), Size(4, 4)]
    story.stays(14, slow=True, use=0.9)
    assert not story.scaler.at_limit
    decision = story.stays(60, slow=True, use=0.9)
    assert decision.kind is Kind.LIMITED
    assert decision.reason.endswith("slow, and 4 CPUs are the most, 4 pods are the most")
    assert story.scaler.at_limit
    story.look()
    assert not story.scaler.at_limit


def test_a_change_is_given_time_to_have_its_effect() -> None:
    story = Story()
    story.until(Kind.MORE_CPU, slow=True, use=0.9)
    assert "the last change is less than 15 s ago" in story.stays(14, slow=True, use=0.9).reason
    assert story.look(slow=True, use=0.9).kind is Kind.MORE_CPU


def test_more_cpu_does_not_help_where_hardly_any_is_used() -> None:
    decision = Story().stays(60, slow=True, use=0.05)
    assert decision.reason.endswith("slow, but with CPU use below 10% more would not help, at the smallest size")


def test_what_is_hardly_used_shrinks_though_it_is_slow() -> None:
    """As on a node that others keep busy."""
    assert Story(Size(2, 2)).until(Kind.LESS_CPU, slow=True, use=0.05).target == SMALLEST


def test_a_few_requests_prove_nothing() -> None:
    assert Story().look(slow=True, use=0.9, requests=19).kind is Kind.STAY


def test_a_size_is_watched_before_it_is_judged() -> None:
    assert Story().look(slow=True, use=0.9, watched_seconds=2.9).kind is Kind.STAY


def test_nothing_is_decided_while_a_change_is_under_way() -> None:
    story = Story()
    first = story.look(slow=True, use=0.9)
    assert story.stays(100, slow=True, use=0.9).reason == f"under way: {first.reason}"
    story.does(first)
    story.until(Kind.MORE_CPU, slow=True, use=0.9)


def test_a_step_between_steps_leads_to_the_next() -> None:
    assert Story(Size(1.5, 2)).look(slow=True, use=0.9).target == Size(2, 2)


# Room.


def test_no_room_for_more_cpu_leads_to_more_pods_at_once() -> None:
    story = Story()
    story.look(slow=True, use=0.9)
    story.scaler.no_room(story.now, "Infeasible: node has 2 CPUs")
    decision = story.look(slow=True, use=0.9)
    assert (decision.kind, decision.target) == (Kind.MORE_PODS, Size(1, 3))
    assert "no room for 2 CPUs (Infeasible: node has 2 CPUs)" in decision.reason


def test_no_room_at_all_is_the_limit_and_asked_again_after_a_while() -> None:
    story = Story()
    for _ in range(2):
        assert story.look(slow=True, use=0.9).target is not None
        story.scaler.no_room(story.now, "Deferred")
    decision = story.stays(290, slow=True, use=0.9)
    assert decision.kind is Kind.LIMITED
    assert "no room for 2 CPUs (Deferred), no room for 3 pods (Deferred)" in decision.reason
    assert story.until(Kind.MORE_CPU, slow=True, use=0.9, seconds=12).kind is Kind.MORE_CPU


def test_room_is_asked_for_again_once_something_was_given_back() -> None:
    story = Story(Size(2, 3))
    story.look(slow=True, use=0.9)
    story.scaler.no_room(story.now, "Infeasible")
    story.until(Kind.MORE_PODS, slow=True, use=0.9)
    story.until(Kind.LESS_CPU, use=0.05)
    assert story.until(Kind.MORE_CPU, slow=True, use=0.9).target == Size(2, 4)


def test_a_failure_is_tried_again_after_a_pause() -> None:
    story = Story()
    story.look(slow=True, use=0.9)
    story.scaler.failed(story.now)
    story.stays(14, slow=True, use=0.9)
    assert story.look(slow=True, use=0.9).target == Size(2, 2)


# Down.


def test_less_cpu_first_then_fewer_pods_then_no_more() -> None:
    story = Story(Size(4, 4))
    sizes = [story.until(Kind.LESS_CPU, Kind.FEWER_PODS, use=0.05).target for _ in range(4)]
    assert sizes == [Size(2, 4), Size(1, 4), Size(1, 3), Size(1, 2)]
    assert story.stays(600, use=0.05).reason.endswith("well, at the smallest size")


def test_the_highest_use_of_the_last_time_counts() -> None:
    story = Story(Size(4, 2))
    for _ in range(10):
        story.look(use=0.5)
        story.stays(100, use=0.1)
    decision = story.until(Kind.LESS_CPU, use=0.1, seconds=21)
    assert "at most 10% in use for 120 s, below 40%: 4 to 2 CPUs" in decision.reason


def test_a_smaller_size_that_would_be_full_is_not_taken() -> None:
    story = Story(Size(4, 2), steps=(1, 4))
    assert "1 CPUs would be 120% full" in story.stays(300, use=0.3).reason
    story.until(Kind.LESS_CPU, use=0.17)


def test_pods_go_below_their_own_threshold() -> None:
    story = Story(Size(1, 4))
    assert "smaller below 30%" in story.stays(300, use=0.35).reason
    assert story.until(Kind.FEWER_PODS, use=0.25).target == Size(1, 3)


def test_nothing_shrinks_while_pods_do_not_report() -> None:
    assert "only 2 of 4 pods report" in Story(Size(1, 4)).stays(300, use=0.1, pods=2).reason


def test_a_new_leader_watches_before_it_shrinks() -> None:
    story = Story(Size(4, 2))
    assert "120 s must be watched first" in story.stays(120, use=0.01).reason
    story.until(Kind.LESS_CPU, use=0.01, seconds=1)


# Hysteresis.


def test_a_size_that_was_too_slow_is_not_gone_back_to_under_the_same_load() -> None:
    """A load in bursts: one CPU per pod is too slow for it, and on average hardly used."""
    story = Story()
    story.until(Kind.MORE_CPU, slow=True, use=0.3)
    decision = story.stays(3500, use=0.15)
    assert "2 CPUs in all were too slow for 0.60 in use" in decision.reason
    story.until(Kind.LESS_CPU, use=0.15, seconds=200)


def test_each_vain_attempt_doubles_the_time_to_the_next() -> None:
    story = Story()
    story.pause = 15.0
    waits = []
    for _ in range(7):
        story.until(Kind.MORE_CPU, slow=True, use=0.3)
        since = story.now
        story.until(Kind.LESS_CPU, use=0.15, seconds=90_000)
        waits.append(round((story.now - since) / 3600))
    assert waits == [1, 2, 4, 8, 16, 24, 24]


def test_a_size_that_was_too_slow_is_gone_back_to_once_the_load_is_less() -> None:
    story = Story()
    story.until(Kind.MORE_CPU, slow=True, use=0.9)
    story.until(Kind.LESS_CPU, use=0.2, seconds=240)


# Bounds.


def test_what_somebody_else_took_out_of_bounds_is_brought_back() -> None:
    for size, target in (
        (Size(1, 1), Size(1, 2)),
        (Size(1, 9), Size(1, 4)),
        (Size(0.5, 2), Size(1, 2)),
        (Size(8, 2), Size(4, 2)),
    ):
        decision = Story(size).look()
        assert (decision.target, decision.kind in CHANGES) == (target, True)
        assert "outside of" in decision.reason


def test_a_refused_way_back_into_bounds_is_not_asked_for_all_the_time() -> None:
    story = Story(Size(1, 1))
    story.look()
    story.scaler.no_room(story.now, "nodes are full")
    story.stays(299)
    assert story.look().target == Size(1, 2)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"steps": ()}, "steps are"),
        ({"steps": (1, 1)}, "each larger"),
        ({"min_pods": 0}, "pods, must be"),
        ({"min_pods": 5}, "5 to 4 pods"),
    ],
)
def test_bounds_that_contradict_each_other_are_refused(settings: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        replace(POLICY, **settings)  # type: ignore[arg-type]
