"""Texts about replicas that cannot start."""

from __future__ import annotations

from router.cluster.local.start_failures import StartFailure, StartFailures, excerpt
from router.model.problems import Problem

FAILURE = StartFailure(
    "exit code 3", "RuntimeError: no weights (score.py, line 12)", ("line 1", "line 2"), "/state/iris-1.log"
)


def test_first_failure_has_the_output_and_its_place() -> None:
    assert StartFailures().add(FAILURE, 100.0, 0.5) == (
        "cannot start (exit code 3): RuntimeError: no weights (score.py, line 12)\n"
        "line 1\nline 2\nwhole output: /state/iris-1.log; next start in 0.5 s"
    )


def test_equal_failures_are_reported_when_their_number_doubles() -> None:
    failures = StartFailures()
    texts = [failures.add(FAILURE._replace(log=f"/state/{n}.log"), 100.0 + n, 2.0) for n in range(100)]
    reported = [number for number, text in enumerate(texts, start=1) if text is not None]
    assert reported == [1, 2, 4, 8, 16, 32, 64]
    assert texts[3] == (
        "cannot start (exit code 3): RuntimeError: no weights (score.py, line 12) (4 times in 3 s)\n"
        "whole output: /state/3.log; next start in 2 s"
    )


def test_other_failure_is_reported_at_once() -> None:
    failures = StartFailures()
    for now in (100.0, 101.0, 102.0):
        failures.add(FAILURE, now, 1.0)
    text = failures.add(FAILURE._replace(reason="exit code 1"), 103.0, 1.0)
    assert text is not None
    assert text.startswith("cannot start (exit code 1)")


def test_description_follows_the_time_of_the_next_start() -> None:
    failures = StartFailures()
    key = "iris", "blue"
    assert failures.problem(key, 100.0) is None
    failures.add(StartFailure("no process: Permission denied"), 100.0, 8.0)
    cause = "cannot start (no process: Permission denied)"
    assert failures.problem(key, 102.0) == Problem(cause, *key, output="next start in 6 s")
    assert failures.problem(key, 109.0) == Problem(cause, *key, output="starting again")
    failures.add(StartFailure("no process: Permission denied"), 110.0, 8.0)
    assert failures.problem(key, 111.0) == Problem(cause, *key, detail="2 times in 10 s", output="next start in 7 s")
    failures.clear()
    assert failures.problem(key, 109.0) is None


def test_excerpt_is_the_last_ten_lines_that_are_not_blank() -> None:
    output = "\n\n".join(f"line {number}  " for number in range(30))
    assert excerpt(output) == tuple(f"line {number}" for number in range(20, 30))


def test_excerpt_has_the_traceback_that_is_followed_by_much_output() -> None:
    traceback = [f"frame {number}" for number in range(20)] + ["RuntimeError: no weights"]
    after = [f"worker: line {number}" for number in range(12)]
    assert excerpt("\n".join((*traceback, *after)), traceback) == (
        *traceback[-6:], "...", *after[-3:],
    )  # fmt: skip
    assert excerpt("\n".join((*traceback, *after[:2])), traceback) == (*traceback[-8:], *after[:2])


def test_short_traceback_leaves_more_lines_of_the_output() -> None:
    output = "\n".join(f"line {number}" for number in range(20))
    lines = excerpt(output, ("Traceback:", "ValueError: no weights"))
    assert lines[:3] == ("Traceback:", "ValueError: no weights", "...")
    assert lines[3:] == tuple(f"line {number}" for number in range(13, 20))
