"""Each form in which YAML can write a setting means the same to the chart and to the router, or Helm rejects it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from helm_python import HelmError, parse_set_string, values_from_yaml

from deploy.values_schema import MANAGED
from router.cluster.local.config_file import load_router_file
from router.config.router import ROUTER_SETTINGS, load_settings
from router.config.schema import Setting, SettingKind, SettingsError, parse_value
from tests.deploy.chart import container_of, render, smallest

_BOOLEANS = {
    "true": True, "false": False, "True": True, "FALSE": False, "on": True, "off": False, "yes": True, "No": False,
    "'true'": True, '"False"': False,
}  # fmt: skip

_FRACTIONS = {
    **{form: float(value) for form, value in _BOOLEANS.items()},
    "'0.01'": 0.01, "'5e-05'": 5e-05,
    "'on'": 1.0, '"off"': 0.0, "0": 0.0, "1": 1.0, "1.0": 1.0, ".5": 0.5, "0.00005": 5e-5, "5e-5": 5e-5, "1e-7": 1e-7,
    "1E-09": 1e-9, "0.123456789": 0.123456789,
}  # fmt: skip

_NUMBERS = {
    "[0.25, 0.5, 1]": (0.25, 0.5, 1), "[1, 2.0, 4]": (1, 2, 4), "['0.5', 1]": (0.5, 1), "0.5": (0.5,), "2": (2,),
    "'0.5, 1,2'": (0.5, 1, 2), "[5e-1, 1.5e0]": (0.5, 1.5),
}  # fmt: skip

_LISTS = {
    "[a.b, c]": ("a.b", "c"),
    "'a.b, c'": ("a.b", "c"),
    "[]": (),
    "''": (),
    "[10.0.0.0/8, '::1']": ("10.0.0.0/8", "::1"),
}

_INVALID = ("[true]", "{a: 1}", "[[1]]", "-1", "1e300", "'x y'", "[0]", "'1e3'", "''", "maybe", "2024-01-01", "1:30")

_SETTINGS = [setting for setting in ROUTER_SETTINGS if setting.name not in MANAGED]


def _forms(setting: Setting) -> dict[str, object]:
    """Return forms of valid values in YAML, and what each means."""
    least = setting.minimum if setting.above is None else setting.above
    match setting.kind:
        case SettingKind.BOOL:
            return dict(_BOOLEANS)
        case SettingKind.FRACTION:
            return dict(_FRACTIONS)
        case SettingKind.NUMBERS:
            return dict(_NUMBERS)
        case SettingKind.INT:
            number = int(least) + 2
            return dict.fromkeys((f"{number}", f"{number:_}", f"{number}.0", f"{number:.15e}", hex(number)), number)
        case SettingKind.FLOAT:
            decimal = least + 1.5
            forms: dict[str, object] = dict.fromkeys((f"{decimal}", f"{decimal:.15e}", f"{decimal}00"), decimal)
            return forms | ({} if setting.maximum < 3e6 else {"2000000.5": 2000000.5, "3e6": 3e6})
    texts = _LISTS if setting.kind is SettingKind.LIST else {choice: choice for choice in setting.choices}
    return {form: value for form, value in texts.items() if _is_valid(setting, value)}


def _is_valid(setting: Setting, value: object) -> bool:
    try:
        parse_value(setting, value)
    except SettingsError:
        return False
    return True


def _effective(forms: Mapping[str, str], directory: Path) -> dict[str, Any]:
    """Return what the router reads from the chart's ConfigMap. Raises `HelmError` or `SettingsError`."""
    text = ", ".join(f"{name}: {form}" for name, form in forms.items())
    return _effective_settings(values_from_yaml(f"router: {{{text}}}"), directory)


def _effective_settings(values: dict[str, Any], directory: Path) -> dict[str, Any]:
    objects = render(smallest(**values))
    path = directory / "router.yaml"
    path.write_text(objects["ConfigMap", "azuremlfeconfig"]["data"]["router.yaml"])
    settings = load_settings(environ={"HOME": "/"}, file=load_router_file(path)[0])
    found = {name: getattr(settings, name) for name in values["router"]}
    if "admin_hosts" in found:
        found["admin_hosts"] = found["admin_hosts"][4:]  # the chart adds the names of the Service
    return found


_FORMS = {setting.name: list(_forms(setting).items()) for setting in _SETTINGS}


@pytest.mark.parametrize("number", range(max(map(len, _FORMS.values()))))
def test_each_form_means_the_same_to_chart_and_router(number: int, tmp_path: Path) -> None:
    chosen = {name: forms[number] for name, forms in _FORMS.items() if number < len(forms)}
    found = _effective({name: form for name, (form, _) in chosen.items()}, tmp_path)
    assert found == {name: value for name, (_, value) in chosen.items()}


@pytest.mark.parametrize("form", _INVALID)
def test_helm_rejects_by_name_what_the_router_rejects(form: str, tmp_path: Path) -> None:
    names = [setting.name for setting in _SETTINGS]
    with pytest.raises(HelmError) as error:
        _effective(dict.fromkeys(names, form), tmp_path)
    accepted = [name for name in names if f"router/{name}" not in str(error.value)]
    assert accepted != names
    _effective(dict.fromkeys(accepted, form), tmp_path)


@pytest.mark.parametrize(
    ("values", "image"),
    [
        ("tag=2", "models.azurecr.io/azureml-fe:2"),
        ("tag=20261129", "models.azurecr.io/azureml-fe:20261129"),
        ("tag=0", "models.azurecr.io/azureml-fe:0"),
        ("tag=1.10", "models.azurecr.io/azureml-fe:1.10"),
        ("tag=v1", "models.azurecr.io/azureml-fe:v1"),
        (f"tag=v1,image.digest=sha256:{'a' * 64}", f"models.azurecr.io/azureml-fe@sha256:{'a' * 64}"),
    ],
)
def test_image_by_tag_or_digest(values: str, image: str) -> None:
    given = parse_set_string(f"image.{values}")["image"]
    repository = smallest()["image"]
    assert container_of(render(smallest(image=repository | given)))["image"] == image


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("access_log=0.01", 0.01),
        ("access_log=on", 1.0),
        ("access_log=true", 1.0),
        ("trace_sample_ratio=0.00005", 5e-5),
        ("trace_sample_ratio=5e-05", 5e-5),
        ("trace_sample_ratio=1", 1.0),
        ("self_scaling_cpu_steps={0.25,0.5,1}", (0.25, 0.5, 1)),
        ("self_scaling_cpu_steps=0.5", (0.5,)),
        ("peer_tls=off", "off"),
        ("http2=on", "on"),
        ("http2=true", "on"),
        ("http2=off", "off"),
        ("server_timing=false", False),
        ("workers=2", 2),
        ("admin_hosts={a.b,c}", ("a.b", "c")),
    ],
)
def test_forms_of_helms_flag_set(flag: str, value: object, tmp_path: Path) -> None:
    (found,) = _effective_settings(parse_set_string(f"router.{flag}"), tmp_path).values()
    assert found == value


@pytest.mark.parametrize("flag", ["access_log=1.5", "trace_sample_ratio=1e3", "self_scaling_cpu_steps={0,1}"])
def test_forms_of_helms_flag_set_that_are_rejected(flag: str, tmp_path: Path) -> None:
    with pytest.raises(HelmError, match=flag.partition("=")[0]):
        _effective_settings(parse_set_string(f"router.{flag}"), tmp_path)


def test_tag_of_a_values_file_may_be_a_whole_number() -> None:
    given = values_from_yaml("image: {repository: models.azurecr.io/azureml-fe, tag: 20261129}")
    assert container_of(render(smallest(**given)))["image"].endswith(":20261129")


def test_issuers_read_the_same_numbers_and_lists(tmp_path: Path) -> None:
    given = "issuer: https://login.example.com, audience: 'a, b', keys_max_age_seconds: 2000000.5"
    objects = render(smallest(**values_from_yaml(f"tokenIssuers: {{corp: {{{given}}}}}")))
    path = tmp_path / "router.yaml"
    path.write_text(objects["ConfigMap", "azuremlfeconfig"]["data"]["router.yaml"])
    (issuer,) = load_router_file(path)[1].values()
    assert (issuer.audience, issuer.keys_max_age_seconds) == (("a", "b"), 2000000.5)
