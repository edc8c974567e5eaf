"""Names of the objects of a release, and of two releases in one cluster."""

from __future__ import annotations

import re
from typing import Any

import pytest

from router.cluster.kubernetes.access import ACCESS_RULES, SELF_SCALING_ACCESS_RULES
from router.config.router import load_settings
from tests.deploy.chart import Values, manifests, router_yaml, smallest, texts, values_file

Identity = tuple[str, str, str]
"""Kind, namespace (empty for cluster-wide objects) and name."""


def identities(values: Values, release: str, namespace: str) -> list[Identity]:
    """Return the identity of each object of a release."""
    return [
        (each["kind"], each["metadata"].get("namespace", ""), each["metadata"]["name"])
        for each in manifests(values, release=release, namespace=namespace)
    ]


def everything(**more: Any) -> Values:
    """Return values with which the chart creates all of its objects."""
    parents = {"enabled": True, "parentRefs": [{"name": "public"}]}
    objects = {"ingress": {"enabled": True}, "httpRoute": parents, "peers": {}, "grafanaDashboard": {"enabled": True}}
    pair = {"sslCertPemFile": "-----BEGIN CERTIFICATE-----", "sslKeyPemFile": "-----BEGIN PRIVATE KEY-----"}
    return values_file("production") | {"sslSecret": ""} | pair | objects | more


ALL = {"namespaces": [], "allNamespaces": True}


@pytest.mark.parametrize("scope", [{}, ALL], ids=["named-namespaces", "all-namespaces"])
@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("azureml-fe", "azureml", {}), ("azureml-fe", "other", {})),
        (("azureml-fe", "azureml", {}), ("second", "azureml", {"fullnameOverride": "second"})),
        (("azureml-fe", "azureml", {}), ("second", "azureml", {"nameOverride": "router"})),
        (("a", "b", {"fullnameOverride": "x-role"}), ("a", "b", {"fullnameOverride": "x"})),
        (("a", "y-role-z", {"fullnameOverride": "x"}), ("a", "z", {"fullnameOverride": "x-role-y"})),
    ],
    ids=["other-namespace", "fullnameOverride", "nameOverride", "suffix", "hyphens"],
)
def test_two_releases_share_no_object(first: Any, second: Any, scope: Values) -> None:
    installed: set[Identity] = set()
    for release, namespace, values in (first, second):
        objects = identities(everything(**scope, **values), release, namespace)
        assert len(objects) == len(set(objects)) > 20
        assert not installed & set(objects)
        installed |= set(objects)


def test_two_releases_select_their_own_pods() -> None:
    selectors = []
    for values in ({}, {"fullnameOverride": "second"}):
        objects = {
            (each["kind"], each["metadata"]["name"]): each for each in manifests(smallest(**values), release="second")
        }
        name = values.get("fullnameOverride", "azureml-fe")
        labels = objects["Deployment", name]["spec"]["template"]["metadata"]["labels"]
        for service in (name, f"{name}-int-http", f"{name}-admin"):
            selector = objects["Service", service]["spec"]["selector"]
            assert selector.items() <= labels.items()
            selectors.append(tuple(selector.items()))
    assert len(set(selectors)) == 2


@pytest.mark.parametrize("release", ["azureml-fe", "team"])
def test_default_names_are_those_of_azure_ml_whatever_the_release_is_called(release: str) -> None:
    names = {(kind, name) for kind, _, name in identities(everything(), release, "azureml")}
    assert {
        ("Deployment", "azureml-fe"),
        ("ServiceAccount", "azureml-fe"),
        ("Service", "azureml-fe"),
        ("Service", "azureml-fe-int-http"),
        ("Secret", "azuremlfessl"),
        ("ConfigMap", "azuremlfeconfig"),
    } <= names


@pytest.mark.parametrize(
    ("release", "values", "name"),
    [
        ("azureml-fe", {}, "azureml-fe"),
        ("team", {"nameOverride": "router"}, "team-router"),
        ("team-router", {"nameOverride": "router"}, "team-router"),
        ("team", {"nameOverride": "router", "fullnameOverride": "scoring"}, "scoring"),
    ],
)
def test_all_names_begin_with_the_full_name(release: str, values: Values, name: str) -> None:
    objects = identities(everything(**values), release, "azureml")
    assert ("Deployment", "azureml", name) in objects
    assert {each for _, _, each in objects if not each.startswith(name)} == (
        {"azuremlfessl", "azuremlfeconfig"} if name == "azureml-fe" else set()
    )


def test_router_has_the_names_of_its_release() -> None:
    objects = {
        (each["kind"], each["metadata"]["name"]): each for each in manifests(smallest(fullnameOverride="scoring"))
    }
    settings = load_settings(environ={"HOME": "/"}, file=_settings(objects["ConfigMap", "scoring-config"]))
    assert settings.router_name == "scoring"
    assert settings.admin_hosts[0] == "scoring-admin"
    granted = {name for rule in objects["Role", "scoring"]["rules"] for name in rule.get("resourceNames", ())}
    rules = (*ACCESS_RULES, *SELF_SCALING_ACCESS_RULES)
    own = [rule for rule in rules if rule.scope == "own" and rule.name]
    assert granted == {rule.name_of(settings.router_name) for rule in own}
    volumes = objects["Deployment", "scoring"]["spec"]["template"]["spec"]["volumes"]
    mounted = {"ConfigMap": {"scoring-config"}, "Secret": {"scoring-peers"}}
    assert mounted["ConfigMap"] == {each["configMap"]["name"] for each in volumes if "configMap" in each}
    assert mounted["Secret"] <= {each["secret"]["secretName"] for each in volumes if "secret" in each}
    pod = objects["Pod", "scoring-test"]
    assert re.findall(r"//([a-z-]+):", str(pod["spec"]["containers"])) == ["scoring", "scoring-admin"]


def test_default_release_needs_no_setting_for_its_name() -> None:
    """A router of an earlier release would reject it."""
    objects = {(each["kind"], each["metadata"]["name"]): each for each in manifests(smallest())}
    assert "router_name" not in router_yaml(objects)["router"]


def _settings(config_map: Any) -> Any:
    return router_yaml({("ConfigMap", "azuremlfeconfig"): config_map})["router"]


@pytest.mark.parametrize("upgrade", [False, True])
def test_notes_name_the_objects_of_the_release(upgrade: bool) -> None:
    notes = texts(smallest(fullnameOverride="scoring"), upgrade=upgrade)["NOTES.txt"]
    assert "rollout status deployment/scoring" in notes
    assert "get service scoring " in notes
    assert "scoring-int-http.azureml:9001" in notes
    assert "azureml-fe-int-http" not in notes
