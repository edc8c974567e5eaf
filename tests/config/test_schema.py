"""Parsing one value: typed and text values, rejected values, and the text of the error."""

import math
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from router.config.schema import (
    MAX_NUMBER,
    ErrorCollector,
    Setting,
    SettingKind,
    SettingsError,
    SettingsErrors,
    parse_value,
)
from router.config.service_settings import SERVICE_SETTINGS, VERSION_SETTINGS
from router.config.unknown import unknown_setting


def setting(kind: SettingKind, **fields: Any) -> Setting:
    return Setting(name="subject", kind=kind, description="A subject.", **fields)


INT = setting(SettingKind.INT)
FLOAT = setting(SettingKind.FLOAT)
FRACTION = setting(SettingKind.FRACTION)
BOOL = setting(SettingKind.BOOL)


def error_of(declared: Setting, raw: object) -> SettingsError:
    with pytest.raises(SettingsError) as caught:
        parse_value(declared, raw, "here")
    return caught.value


@given(st.integers(0, MAX_NUMBER))
def test_integer_may_be_typed_or_text(number: int) -> None:
    assert parse_value(INT, number) == parse_value(INT, str(number)) == number


@given(st.floats(0, MAX_NUMBER, allow_subnormal=False))
def test_typed_float_is_kept(number: float) -> None:
    assert parse_value(FLOAT, number) == number


@given(st.decimals(0, MAX_NUMBER, places=3))
def test_decimal_text_is_the_nearest_float(number: Any) -> None:
    assert parse_value(FLOAT, f"{number:f}") == float(number)


@given(st.text())
@example("1_000")
@example("+5")
@example("-0")
@example(" 5")
@example("5\n")
@example("007")
@example("٣")
@example("5.0")
@example("0x10")
@example("9" * 5000)
def test_text_is_an_integer_only_in_its_shortest_ascii_form(text: str) -> None:
    try:
        number = parse_value(INT, text)
    except SettingsError:
        assert not (text.isascii() and text.isdigit() and str(int(text[:20])) == text and int(text) <= MAX_NUMBER)
    else:
        assert type(number) is int
        assert str(number) == text


@given(st.text())
@example("nan")
@example("inf")
@example("1e3")
@example(".5")
@example("5.")
@example("1_0.5")
@example("+1")
@example("-1")
@example("1,5")
@example("1e5")
@example("e-05")
@example("1e+400")
def test_text_is_a_float_only_of_digits_and_one_point_or_an_exponent(text: str) -> None:
    try:
        number = parse_value(FLOAT, text)
    except SettingsError:
        return
    assert type(number) is float
    assert math.isfinite(number)
    digits, _, exponent = text.partition("e")
    assert set(digits) <= set("0123456789.")
    assert digits[0] != "."
    assert digits[-1] != "."
    assert not exponent or exponent[0] in "+-"


@given(st.floats(1e-30, MAX_NUMBER))
@example(5e-05)
@example(1e-07)
def test_text_of_a_float_as_python_prints_it_is_that_float(number: float) -> None:
    assert parse_value(FLOAT, repr(number)) == number


@pytest.mark.parametrize("raw", [True, False, 1.0, None, [], {}, b"1", -1, MAX_NUMBER + 1, 10**400])
def test_invalid_integer_is_rejected(raw: object) -> None:
    assert error_of(INT, raw).problem.startswith("must be a whole number, at least 0")


@pytest.mark.parametrize("raw", [2147483648, "2147483648", "99999999999999999999", 10**400])
def test_error_mentions_the_implicit_maximum_if_it_is_exceeded(raw: object) -> None:
    assert error_of(INT, raw).problem == "must be a whole number, at least 0, at most 2147483647"


@pytest.mark.parametrize("raw", [True, None, [], math.nan, math.inf, -math.inf, -0.5, 10**400, "1.2.3", ""])
def test_invalid_float_is_rejected(raw: object) -> None:
    error_of(FLOAT, raw)


def test_integer_is_a_valid_float() -> None:
    value = parse_value(FLOAT, 2)
    assert type(value) is float
    assert value == 2.0


@pytest.mark.parametrize(
    ("raw", "value"), [(True, True), (False, False), ("true", True), ("True", True), ("False", False)]
)
def test_bool_is_parsed(raw: object, value: bool) -> None:
    assert parse_value(BOOL, raw) is value


@pytest.mark.parametrize("raw", [1, 0, "1", "yes", "on", "TRUE", "", " true", None, "tRue"])
def test_invalid_bool_is_rejected(raw: object) -> None:
    assert error_of(BOOL, raw).problem == "must be true or false"


@pytest.mark.parametrize(
    ("raw", "fraction"),
    [
        ("on", 1.0),
        ("off", 0.0),
        (True, 1.0),
        (False, 0.0),
        ("0.01", 0.01),
        (0.5, 0.5),
        (1, 1.0),
        ("true", 1.0),
        ("False", 0.0),
        ("5e-05", 5e-05),
    ],
)
def test_fraction_is_on_off_or_a_number(raw: object, fraction: float) -> None:
    assert parse_value(FRACTION, raw) == fraction


@pytest.mark.parametrize("raw", ["1.1", 2, -0.1, "ON", "yes", [], math.nan])
def test_invalid_fraction_is_rejected(raw: object) -> None:
    error_of(FRACTION, raw)


def test_minimum_and_maximum_are_inclusive_and_above_exclusive() -> None:
    percent = setting(SettingKind.INT, minimum=1, maximum=100)
    assert [parse_value(percent, number) for number in (1, 100)] == [1, 100]
    assert error_of(percent, 0).problem == "must be a whole number from 1 to 100"
    error_of(percent, 101)
    seconds = setting(SettingKind.FLOAT, above=0, maximum=10, unit="s")
    assert parse_value(seconds, 10) == 10
    assert error_of(seconds, 0).problem == "must be a number above 0, at most 10 (s)"
    assert error_of(setting(SettingKind.FLOAT, above=0), "0.0").problem == "must be a number above 0"


def test_whole_text_must_match_choices_or_pattern() -> None:
    level = setting(SettingKind.TEXT, choices=("info", "error"))
    assert parse_value(level, "info") == "info"
    assert error_of(level, "Info").problem == "must be one of info, error"
    word = setting(SettingKind.TEXT, pattern="[a-z]+", pattern_text="a word")
    for raw in ("two words", "", "word\n", 1, None):
        error_of(word, raw)


def test_list_may_be_a_list_or_comma_separated_text() -> None:
    words = setting(SettingKind.LIST, pattern="[a-z]+", pattern_text="words")
    assert parse_value(words, ["a", "b"]) == parse_value(words, "a, b") == ("a", "b")
    assert parse_value(words, "") == parse_value(words, []) == ()
    for raw in ("a,,b", ["A"], [1], [None], 5, None, {"a": "b"}):
        assert error_of(words, raw).problem == "must be a list of words"


def test_numbers_may_be_a_list_of_numbers_or_texts_or_one_text_or_number() -> None:
    numbers = setting(SettingKind.NUMBERS, minimum=0.5, maximum=8, pattern_text="sizes")
    valid: tuple[object, ...] = ([1, 2.5], ["1", "2.5"], "1, 2.5", "1,2.5", (1, "2.5"))
    for raw in valid:
        assert parse_value(numbers, raw) == (1.0, 2.5)
    assert parse_value(numbers, 2) == parse_value(numbers, "2") == (2.0,)
    invalid: tuple[object, ...] = ("1,,2", [0.4], [9], [True], [None], None, {"a": 1}, "a", [[1]], True, math.nan)
    for raw in invalid:
        assert error_of(numbers, raw).problem == "must be a list of sizes"


def test_mapping_maps_text_to_text() -> None:
    names = setting(SettingKind.MAPPING, pattern="[A-Z]+", pattern_text="capitals")
    assert parse_value(names, {"A": "1"}) == {"A": "1"}
    invalid: tuple[object, ...] = ({"a": "1"}, {"A": 1}, {1: "A"}, {"A": None}, "A=1", [], None)
    for raw in invalid:
        assert error_of(names, raw).problem == "must be a mapping of capitals to text"


def test_error_is_one_line_with_source_name_value_and_limits() -> None:
    error = error_of(setting(SettingKind.INT, minimum=1, maximum=9, unit="ms"), "1\n2")
    assert (error.setting, error.value, error.where) == ("subject", "1\n2", "here")
    assert str(error) == r"here: subject = '1\n2': must be a whole number from 1 to 9 (ms)"


@given(st.text(), st.text(), st.text())
def test_error_is_one_printable_line_whatever_it_quotes(name: str, value: str, where: str) -> None:
    assert str(SettingsError(name, value, "must not", where)).isprintable()


def test_long_values_are_shortened_in_errors() -> None:
    assert len(str(error_of(INT, "x" * 10_000))) < 200
    assert len(str(error_of(FLOAT, 10**10_000))) < 200


def test_error_does_not_contain_a_secret_value() -> None:
    error = error_of(setting(SettingKind.TEXT, pattern="[a-z]+", secret=True), "S3CRET")
    assert error.value is None
    assert "S3CRET" not in str(error) + repr(error)


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("max_replicas", "autoscale_max_replicas"),
        ("maxReplicas", "autoscale_max_replicas"),
        ("max-request-wait-time", "max_request_wait_time"),
        ("maxQueueWaitMs", "max_request_wait_time"),
        ("max_queue_wait_ms", "max_request_wait_time"),
        ("request_timeout_ms", "scoring_timeout_ms"),
        ("max_concurrent_requests_per_instance", "replica_max_concurrent_requests"),
        ("instance_count", "num_replicas"),
        ("target_utilization_percentage", "autoscale_target_utilization"),
        ("aadAuthEnabled", "token_auth_enabled"),
        ("MemoryGB", "memory_gb"),
        ("memoryInGB", "memory_gb"),
        ("scoringTimeoutMs", "scoring_timeout_ms"),
        ("concurrent_requests", "replica_max_concurrent_requests"),
    ],
)
def test_suggestion_knows_other_spellings_and_parts_of_names(name: str, suggestion: str) -> None:
    known = [setting.name for setting in (*SERVICE_SETTINGS, *VERSION_SETTINGS)]
    assert str(unknown_setting(name, known)) == f"{name}: no such setting; did you mean {suggestion}?"


def test_setting_of_another_place_is_named_with_it() -> None:
    error = unknown_setting("port", ["cpu_cores", "export"], "here", elsewhere={"port": "the section router"})
    assert str(error) == "here: port: no such setting here; it belongs to the section router"


def test_errors_are_collected_once_each() -> None:
    errors = ErrorCollector()
    errors.raise_errors()
    for problem in ("first", "second", "first"):
        with errors.collect():
            raise SettingsError("port", 80, problem)
    with errors.collect(), pytest.raises(ZeroDivisionError):
        print(1 / 0)
    with pytest.raises(SettingsErrors) as raised:
        errors.raise_errors({"port": "m.yaml, line 3"})
    assert str(raised.value) == "m.yaml, line 3: port = 80: first\nm.yaml, line 3: port = 80: second"
    assert [error.problem for error in raised.value.errors] == ["first", "second"]


def test_unknown_setting_error_suggests_the_most_similar_name() -> None:
    known = ("primary_key", "num_replicas")
    assert str(unknown_setting("num_replica", known)) == "num_replica: no such setting; did you mean num_replicas?"
    assert str(unknown_setting("NUM_REPLICAS", known)) == "NUM_REPLICAS: no such setting; did you mean num_replicas?"
    assert str(unknown_setting("zzz", known, "here")) == "here: zzz: no such setting"
