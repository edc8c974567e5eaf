"""Equal messages are limited and counted."""

from router.telemetry.repeats import MAX_PER_SECOND, MessageKey, RepeatLimiter

KEY = MessageKey("router.gateway", 30, "replica sent an invalid response", "iris")
OTHERS = [
    KEY._replace(logger="router.workers"),
    KEY._replace(level=40),
    KEY._replace(message="replica ejected"),
    KEY._replace(service="other"),
    KEY._replace(service=None),
]


def admitted(limiter: RepeatLimiter, key: MessageKey, count: int) -> int:
    return sum(limiter.admit(key) for _ in range(count))


def test_first_messages_of_a_second_are_admitted_and_the_others_counted() -> None:
    limiter = RepeatLimiter()
    assert limiter.take_suppressed(100.0) == []
    assert admitted(limiter, KEY, 263) == MAX_PER_SECOND
    assert limiter.take_suppressed(100.9) == []
    assert limiter.take_suppressed(101.0) == [(KEY, 263 - MAX_PER_SECOND)]
    assert limiter.take_suppressed(102.0) == []
    assert admitted(limiter, KEY, 3) == 3


def test_different_messages_do_not_affect_each_other() -> None:
    limiter = RepeatLimiter()
    admitted(limiter, KEY, 1000)
    assert [admitted(limiter, key, 1) for key in OTHERS] == [1] * len(OTHERS)
    assert limiter.take_suppressed(1.0) == [(KEY, 1000 - MAX_PER_SECOND)]


def test_messages_below_the_limit_are_not_reported() -> None:
    limiter = RepeatLimiter()
    for second in range(5):
        assert admitted(limiter, KEY, MAX_PER_SECOND) == MAX_PER_SECOND
        assert limiter.take_suppressed(float(second + 1)) == []
