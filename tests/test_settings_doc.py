"""The settings page of the documentation says what the tables say."""

from pathlib import Path

from router.auth.issuers import ISSUER_SETTINGS
from router.cluster.kubernetes.annotations import DEPLOYMENT_SETTINGS
from router.cluster.local.file import LAUNCH_SETTINGS
from router.service_settings import SERVICE_SETTINGS, VERSION_SETTINGS
from router.settings import ROUTER_SETTINGS
from router.settings_doc import render

PAGE = Path(__file__).parent.parent / "docs" / "settings.md"


def test_page_is_up_to_date() -> None:
    assert PAGE.read_text("utf-8") == render(), "run: python -m router.settings_doc > docs/settings.md"


def test_every_setting_is_a_row_of_a_table_with_whole_rows() -> None:
    rows = [line for line in render().splitlines() if line.startswith("| `")]
    settings = (
        *SERVICE_SETTINGS,
        *VERSION_SETTINGS,
        *LAUNCH_SETTINGS,
        *DEPLOYMENT_SETTINGS,
        *ROUTER_SETTINGS,
        *ISSUER_SETTINGS,
    )
    assert [row.split("`")[1] for row in rows] == [setting.name for setting in settings]
    assert {row.replace(r"\|", "").count("|") for row in rows} == {6, 8}


def test_names_are_unique() -> None:
    of_a_service = [setting.name for setting in (*SERVICE_SETTINGS, *VERSION_SETTINGS, *LAUNCH_SETTINGS)]
    assert len(set(of_a_service)) == len(of_a_service)
