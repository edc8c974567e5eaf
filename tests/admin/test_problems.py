"""Groups of problems."""

from router.admin.problems import MAX_GROUPS, MAX_SERVICES, ProblemGroup, group_problems


def test_one_dead_server_of_many_services_is_one_group() -> None:
    problems = [
        f"service model-{number}: model-{number}-{number + 7} at 10.0.0.9:5001 is not ready: Connection refused"
        for number in range(333)
    ]
    (group,) = group_problems(problems)
    assert group == ProblemGroup(
        "a replica at 10.0.0.9:5001 is not ready: Connection refused",
        333,
        [f"model-{number}" for number in range(MAX_SERVICES)],
        333 - MAX_SERVICES,
    )


def test_different_causes_and_addresses_are_different_groups() -> None:
    problems = [
        "service a: a-1 has not been ready for 12 s: status 503",
        "service a, version blue: a-blue-2 has not been ready for 99 s: status 503",
        "service a: a-1 has not been ready for 12 s: status 404",
        "service b: b-1 at 10.0.0.9:1 is not ready: Connection refused",
        "service b: b-1 at 10.0.0.8:1 is not ready: Connection refused",
        "no worker accepts clients",
    ]
    groups = group_problems(problems)
    assert [(group.problems, group.services) for group in groups] == [
        (1, []), (2, ["a"]), (1, ["a"]), (1, ["b"]), (1, ["b"]),
    ]  # fmt: skip
    assert groups[0].text == "no worker accepts clients"


def test_number_of_groups_is_bounded_and_none_is_lost() -> None:
    groups = group_problems(f"service a: cause {number}x" for number in range(100))
    assert len(groups) == MAX_GROUPS
    assert sum(group.problems for group in groups) == 100
    assert groups[-1].text == "71 further problems"


def test_texts_of_several_lines_are_grouped() -> None:
    text = "replicas cannot start: exit code 3\n  ValueError: no file"
    assert [group.problems for group in group_problems([f"service {name}: {text}" for name in "ab"])] == [2]
