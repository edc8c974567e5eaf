"""Groups of problems."""

from router.admin.problems import MAX_GROUPS, MAX_SERVICES, ProblemGroup, group_problems
from router.model.problems import Problem


def test_one_dead_server_of_many_services_is_one_group() -> None:
    cause = "a replica at 10.0.0.9:5001 is not ready: Connection refused"
    problems = [Problem(cause, f"model-{number}", place=f"model-{number}-{number + 7}") for number in range(333)]
    (group,) = group_problems(problems)
    assert group == ProblemGroup(
        cause, "", "", 333, [f"model-{number}" for number in range(MAX_SERVICES)], 333 - MAX_SERVICES
    )


def test_different_causes_are_different_groups_and_those_of_the_router_are_first() -> None:
    problems = [
        Problem("a replica is not ready: status 503", "a", place="a-1", detail="for 12 s"),
        Problem("a replica is not ready: status 503", "a", "blue", place="a-blue-2", detail="for 99 s"),
        Problem("a replica is not ready: status 404", "b", place="b-1", detail="for 12 s"),
        Problem("a replica is not ready: status 404", "c", place="c-1", detail="for 13 s"),
        Problem("no worker accepts clients"),
        Problem("no worker accepts clients", "a service with the same text"),
    ]
    groups = group_problems(problems)
    assert [(group.problems, group.services, group.note) for group in groups] == [
        (1, [], ""), (2, ["a"], "a-1, for 12 s"), (2, ["b", "c"], ""), (1, ["a service with the same text"], ""),
    ]  # fmt: skip
    assert groups[0].cause == "no worker accepts clients"


def test_number_of_groups_is_bounded_and_none_is_lost() -> None:
    groups = group_problems(Problem(f"cause {number}", "a") for number in range(100))
    assert len(groups) == MAX_GROUPS
    assert sum(group.problems for group in groups) == 100
    assert groups[-1].cause == "71 further problems"


def test_group_has_the_output_of_its_first_problem() -> None:
    problems = [Problem("cannot start (exit code 3)", name, output=f"output of {name}") for name in "ab"]
    (group,) = group_problems(problems)
    assert (group.problems, group.output) == (2, "output of a")


def test_problem_as_text() -> None:
    problem = Problem("cannot start", "iris", "blue", place="iris-1", detail="3 times in 9 s", output="line 1\nline 2")
    assert problem.text == "service iris, version blue: cannot start (iris-1, 3 times in 9 s)\nline 1\nline 2"
    assert Problem("no worker accepts clients").text == "no worker accepts clients"
