"""Which Events are worth a request."""

from dataclasses import replace

from router.cluster.kubernetes.recorder import BURST, REFILL_SECONDS, REMEMBERED, REPEAT_SECONDS, Memory, Said

SAID = Said(("models", "iris"), "uid", "Warning", "SettingsRefused", "wrong")


def test_the_same_again_is_no_news_for_a_while() -> None:
    memory = Memory()
    assert memory.is_news(SAID, 0.0)
    assert not memory.is_news(SAID, REPEAT_SECONDS - 1)
    assert memory.is_news(replace(SAID, message="still wrong"), 1.0)
    assert memory.is_news(SAID, REPEAT_SECONDS)


def test_all_routers_give_an_event_the_same_name_and_another_one_another() -> None:
    assert SAID.name == replace(SAID).name
    assert SAID.name != replace(SAID, message="other").name != replace(SAID, uid="other").name
    long = replace(SAID, deployment=("models", "i" * 253))
    assert len(long.name) <= 253


def test_a_flood_is_cut() -> None:
    memory = Memory()
    flood = [replace(SAID, message=str(number)) for number in range(2 * BURST)]
    assert sum(memory.is_news(said, 0.0) for said in flood) == BURST
    assert memory.is_news(flood[-1], REFILL_SECONDS)
    assert not memory.is_news(flood[-2], REFILL_SECONDS)


def test_what_is_remembered_is_bounded() -> None:
    memory = Memory()
    for number in range(REMEMBERED + 100):
        memory.is_news(replace(SAID, message=str(number)), number * REFILL_SECONDS)
    assert len(memory._said) == REMEMBERED
