"""`azureml-fe plan`."""

import json

import pytest

from router.cli import main


def planned(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["plan", *words]) == 0
    return capsys.readouterr().out


def test_the_published_example(capsys: pytest.CaptureFixture[str]) -> None:
    text = planned(capsys, "--rps", "20", "--seconds", "10", "--target", "70", "--max-concurrent", "1")
    assert "replicas: 286 = ceil(20 x 10 / 0.7 / 1), 1 request at a time each\n" in text
    assert "20 requests/s of 10 s are 200 in flight on average" in text
    assert "autoscale_max_replicas: 286 or more" in text


def test_defaults_are_those_of_the_settings(capsys: pytest.CaptureFixture[str]) -> None:
    assert planned(capsys, "--rps", "20", "--seconds", "10") == planned(
        capsys, "--rps", "20", "--seconds", "10", "--target", "70", "--max-concurrent", "1", "--wait", "500",
        "--refused", "1",
    )  # fmt: skip


def test_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    made = json.loads(planned(capsys, "--rps", "500", "--seconds", "0.05", "--max-concurrent", "4", "--json"))
    assert (made["replicas"], made["in_flight"]) == (9, 25)
    assert made["fewest_replicas"] == 7
    assert made["waits"] > made["refused"] > 0


def test_few_slots_at_a_high_target_wait_often(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--rps", "0.9", "--seconds", "1", "--target", "90", "--json")
    made = json.loads(planned(capsys, *words))
    assert made["replicas"] == 1
    assert made["waits"] == pytest.approx(0.9)
    assert made["refused"] == pytest.approx(0.9 * 2.718281828 ** (-0.1 * 0.5), rel=1e-6)
    assert made["fewest_replicas"] > 1


def test_router_grows_with_the_load(capsys: pytest.CaptureFixture[str]) -> None:
    assert json.loads(planned(capsys, "--rps", "12000", "--seconds", "0.01", "--json"))["router_cores"] == 2.4


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--rps", "0", "--seconds", "1"], "--rps"),
        (["--rps", "x", "--seconds", "1"], "--rps"),
        (["--rps", "1", "--seconds", "nan"], "--seconds"),
        (["--rps", "1", "--seconds", "1", "--target", "101"], "--target"),
        (["--rps", "1", "--seconds", "1", "--max-concurrent", "1.5"], "--max-concurrent"),
        (["--rps", "1000000", "--seconds", "1000000"], "allowed"),
        (["--seconds", "1"], "--rps"),
    ],
)
def test_bad_words_are_one_line_that_says_what_is_allowed(
    capsys: pytest.CaptureFixture[str], words: list[str], named: str
) -> None:
    assert main(["plan", *words]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert named in error
