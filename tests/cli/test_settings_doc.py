"""`docs/settings.md` is up to date and lists every declared setting."""

from pathlib import Path

from router.auth.issuers import ISSUER_SETTINGS
from router.cli.settings_doc import render
from router.cluster.kubernetes.annotations import DEPLOYMENT_SETTINGS
from router.cluster.local.launch import LAUNCH_SETTINGS
from router.config.router import ROUTER_SETTINGS
from router.config.service_settings import SERVICE_SETTINGS, VERSION_SETTINGS

SETTINGS_DOC = Path(__file__).parents[2] / "docs" / "settings.md"


def test_settings_doc_is_up_to_date() -> None:
    assert SETTINGS_DOC.read_text("utf-8") == render(), "run: python -m router.cli.settings_doc > docs/settings.md"


def test_every_setting_is_a_complete_row_of_a_table() -> None:
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
    assert {row.replace(r"\|", "").count("|") for row in rows} == {6, 7, 9}


def test_names_of_service_settings_are_unique() -> None:
    names = [setting.name for setting in (*SERVICE_SETTINGS, *VERSION_SETTINGS, *LAUNCH_SETTINGS)]
    assert len(set(names)) == len(names)
