"""One value: what is read from types and from text, what is refused, and how the refusal reads."""

import math
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from router.values import LARGEST_NUMBER, Kind, Scope, Setting, SettingsError, parse_value, unknown_name


def setting(kind: Kind, **facts: Any) -> Setting:
    return Setting(name="subject", kind=kind, scope=Scope.ROUTER, about="A subject.", **facts)


INT = setting(Kind.INT)
FLOAT = setting(Kind.FLOAT)
RATE = setting(Kind.RATE)
BOOL = setting(Kind.BOOL)


def refusal(of: Setting, raw: object) -> SettingsError:
    with pytest.raises(SettingsError) as caught:
        parse_value(of, raw, "here")
    return caught.value


@given(st.integers(0, LARGEST_NUMBER))
def test_whole_number_is_the_same_typed_and_as_text(number: int) -> None:
    assert parse_value(INT, number) == parse_value(INT, str(number)) == number


@given(st.floats(0, LARGEST_NUMBER, allow_subnormal=False))
def test_typed_number_is_kept(number: float) -> None:
    assert parse_value(FLOAT, number) == number


@given(st.decimals(0, LARGEST_NUMBER, places=3))
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
def test_text_is_a_whole_number_only_in_its_shortest_ascii_form(text: str) -> None:
    try:
        number = parse_value(INT, text)
    except SettingsError:
        assert not (text.isascii() and text.isdigit() and str(int(text[:20])) == text and int(text) <= LARGEST_NUMBER)
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
def test_text_is_a_number_only_of_digits_and_one_point(text: str) -> None:
    try:
        number = parse_value(FLOAT, text)
    except SettingsError:
        return
    assert type(number) is float
    assert math.isfinite(number)
    assert set(text) <= set("0123456789.")
    assert text[0] != "."
    assert text[-1] != "."


@pytest.mark.parametrize("raw", [True, False, 1.0, None, [], {}, b"1", -1, LARGEST_NUMBER + 1, 10**400])
def test_other_types_and_sizes_are_no_whole_number(raw: object) -> None:
    assert refusal(INT, raw).allowed.startswith("must be a whole number, at least 0")


@pytest.mark.parametrize("raw", [2147483648, "2147483648", "99999999999999999999", 10**400])
def test_who_exceeds_the_limit_of_all_numbers_is_told_of_it(raw: object) -> None:
    assert refusal(INT, raw).allowed == "must be a whole number, at least 0, at most 2147483647"


@pytest.mark.parametrize("raw", [True, None, [], math.nan, math.inf, -math.inf, -0.5, 10**400, "1.2.3", ""])
def test_other_types_and_sizes_are_no_number(raw: object) -> None:
    refusal(FLOAT, raw)


def test_whole_number_serves_as_a_number() -> None:
    value = parse_value(FLOAT, 2)
    assert type(value) is float
    assert value == 2.0


@pytest.mark.parametrize(
    ("raw", "value"), [(True, True), (False, False), ("true", True), ("True", True), ("False", False)]
)
def test_bool_is_read(raw: object, value: bool) -> None:
    assert parse_value(BOOL, raw) is value


@pytest.mark.parametrize("raw", [1, 0, "1", "yes", "on", "TRUE", "", " true", None, "tRue"])
def test_other_words_are_no_bool(raw: object) -> None:
    assert refusal(BOOL, raw).allowed == "must be true or false"


@pytest.mark.parametrize(
    ("raw", "share"), [("on", 1.0), ("off", 0.0), (True, 1.0), (False, 0.0), ("0.01", 0.01), (0.5, 0.5), (1, 1.0)]
)
def test_rate_is_on_off_or_a_share(raw: object, share: float) -> None:
    assert parse_value(RATE, raw) == share


@pytest.mark.parametrize("raw", ["1.1", 2, -0.1, "ON", "yes", [], math.nan])
def test_other_rates_are_refused(raw: object) -> None:
    refusal(RATE, raw)


def test_limits_are_inclusive_but_for_above() -> None:
    percent = setting(Kind.INT, minimum=1, maximum=100)
    assert [parse_value(percent, number) for number in (1, 100)] == [1, 100]
    assert refusal(percent, 0).allowed == "must be a whole number from 1 to 100"
    refusal(percent, 101)
    seconds = setting(Kind.FLOAT, above=0, maximum=10, unit="s")
    assert parse_value(seconds, 10) == 10
    assert refusal(seconds, 0).allowed == "must be a number above 0, at most 10 (s)"
    assert refusal(setting(Kind.FLOAT, above=0), "0.0").allowed == "must be a number above 0"


def test_text_must_match_choices_or_pattern_as_a_whole() -> None:
    level = setting(Kind.TEXT, choices=("info", "error"))
    assert parse_value(level, "info") == "info"
    assert refusal(level, "Info").allowed == "must be one of info, error"
    word = setting(Kind.TEXT, pattern="[a-z]+", pattern_means="a word")
    for raw in ("two words", "", "word\n", 1, None):
        refusal(word, raw)


def test_list_comes_as_a_list_or_between_commas() -> None:
    words = setting(Kind.LIST, pattern="[a-z]+", pattern_means="words")
    assert parse_value(words, ["a", "b"]) == parse_value(words, "a, b") == ("a", "b")
    assert parse_value(words, "") == parse_value(words, []) == ()
    for raw in ("a,,b", ["A"], [1], [None], 5, None, {"a": "b"}):
        assert refusal(words, raw).allowed == "must be a list of words"


def test_mapping_is_of_text_to_text() -> None:
    names = setting(Kind.MAPPING, pattern="[A-Z]+", pattern_means="capitals")
    assert parse_value(names, {"A": "1"}) == {"A": "1"}
    refused: tuple[object, ...] = ({"a": "1"}, {"A": 1}, {1: "A"}, {"A": None}, "A=1", [], None)
    for raw in refused:
        assert refusal(names, raw).allowed == "must be a mapping of capitals to text"


def test_error_is_one_line_with_place_name_value_and_limits() -> None:
    error = refusal(setting(Kind.INT, minimum=1, maximum=9, unit="ms"), "1\n2")
    assert (error.setting, error.value, error.where) == ("subject", "1\n2", "here")
    assert str(error) == r"here: subject = '1\n2': must be a whole number from 1 to 9 (ms)"


@given(st.text(), st.text(), st.text())
def test_error_is_one_printable_line_whatever_it_quotes(name: str, value: str, where: str) -> None:
    assert str(SettingsError(name, value, "must not", where)).isprintable()


def test_long_values_are_cut_in_errors() -> None:
    assert len(str(refusal(INT, "x" * 10_000))) < 200
    assert len(str(refusal(FLOAT, 10**10_000))) < 200


def test_secret_value_stays_out_of_its_error() -> None:
    error = refusal(setting(Kind.TEXT, pattern="[a-z]+", secret=True), "S3CRET")
    assert error.value is None
    assert "S3CRET" not in str(error) + repr(error)


def test_unknown_name_suggests_the_nearest() -> None:
    known = ("primary_key", "num_replicas")
    assert str(unknown_name("num_replica", known)) == "num_replica: no such setting; did you mean num_replicas?"
    assert str(unknown_name("NUM_REPLICAS", known)) == "NUM_REPLICAS: no such setting; did you mean num_replicas?"
    assert str(unknown_name("zzz", known, "here")) == "here: zzz: no such setting"
