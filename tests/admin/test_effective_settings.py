"""The settings in effect: what takes effect at once, what is pending, and where values come from."""

from typing import Any

from router.admin.effective_settings import EffectiveSettings
from router.config.router import SourcedSettings, load_sourced_settings


def configured(**file: Any) -> SourcedSettings:
    return load_sourced_settings(environ={}, file=file)


def names(settings: EffectiveSettings) -> dict[str, tuple[object, str]]:
    return {each["name"]: (each["value"], each["source"]) for each in settings.document(only_given=True)}


def test_dynamic_setting_takes_effect_at_once_and_others_are_pending() -> None:
    settings = EffectiveSettings(configured(max_headers=5, drain_seconds=9))
    changes = settings.change(configured(max_headers=6, drain_seconds=8))
    assert list(map(str, changes.applied)) == ["max_headers: 5 -> 6 (router section)"]
    assert list(map(str, changes.pending)) == ["drain_seconds: 9 -> 8 (router section)"]
    assert (settings.values.max_headers, settings.values.drain_seconds) == (6, 9)
    assert settings.pending() == ["drain_seconds"]
    (pending,) = [each for each in settings.document(only_given=True) if "at_next_start" in each]
    assert pending == {"name": "drain_seconds", "value": 9, "source": "router section", "at_next_start": 8}


def test_pending_change_that_is_taken_back_is_none() -> None:
    settings = EffectiveSettings(configured(drain_seconds=9))
    settings.change(configured(drain_seconds=8))
    assert settings.change(configured(drain_seconds=9)) == ((), ())
    assert settings.pending() == []


def test_removed_setting_has_its_default_again() -> None:
    settings = EffectiveSettings(configured(max_headers=5))
    assert names(settings) == {"max_headers": (5, "router section")}
    assert list(map(str, settings.change(configured()).applied)) == ["max_headers: 5 -> 100 (default)"]
    assert {each["source"] for each in settings.document()} == {"default"}


def test_override_lasts_until_a_source_changes_the_setting() -> None:
    settings = EffectiveSettings(configured())
    (change,) = settings.override("POST /logging", log_level="debug", access_log=0.0)
    assert str(change) == "log_level: info -> debug (POST /logging)"
    settings.change(configured(max_headers=5))
    assert settings.values.log_level == "debug"
    assert names(settings)["log_level"] == ("debug", "POST /logging")
    settings.change(configured(max_headers=5, log_level="warning"))
    assert settings.values.log_level == "warning"
    assert names(settings)["log_level"] == ("warning", "router section")
