"""Settings that are declared by the fields of a dataclass."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from router.config.declaration import declared_settings, file_setting, kind_of, setting
from router.config.schema import Setting, SettingKind


@dataclass(frozen=True, kw_only=True)
class Group:
    attempts: int | None = setting("Maximum attempts.", minimum=1, maximum=9, unit="attempts", flag=True)
    password: str = setting("A secret.", secret=True)
    ca_file: str | None = file_setting("A file.", default_text="none")
    sample_ratio: float = setting("A fraction.", kind=SettingKind.FRACTION, default=0.5)
    directory: Path


def test_field_declares_a_setting_with_its_name_and_the_kind_of_its_type() -> None:
    assert declared_settings(Group) == (
        Setting("attempts", SettingKind.INT, "Maximum attempts.", minimum=1, maximum=9, unit="attempts", flag=True),
        Setting("password", SettingKind.TEXT, "A secret.", secret=True),
        Setting(
            "ca_file",
            SettingKind.TEXT,
            "A file.",
            default_text="none",
            pattern=r"[^\x00]+",
            pattern_text="a path",
            is_path=True,
        ),
        Setting("sample_ratio", SettingKind.FRACTION, "A fraction.", default=0.5),
    )


def test_secret_is_not_part_of_the_repr() -> None:
    group = Group(attempts=1, password="s3cret", ca_file=None, sample_ratio=1.0, directory=Path("/"))
    assert "s3cret" not in repr(group)
    assert "attempts=1" in repr(group)


@pytest.mark.parametrize(
    ("annotation", "kind"),
    [
        (bool, SettingKind.BOOL),
        (int | None, SettingKind.INT),
        (float, SettingKind.FLOAT),
        (str | None, SettingKind.TEXT),
        (Path, SettingKind.TEXT),
        (tuple[str, ...], SettingKind.LIST),
        (tuple[tuple[str, int], ...], SettingKind.LIST),
        (tuple[float, ...], SettingKind.NUMBERS),
        (Mapping[str, str], SettingKind.MAPPING),
    ],
)
def test_kind_of_a_type(annotation: object, kind: SettingKind) -> None:
    assert kind_of(annotation) is kind
