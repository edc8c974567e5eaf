"""Discovery documents: version, API groups and resources. No I/O."""

from tests.kube_standin.api_server.resources import RESOURCES, Object, Resource

VERSION: Object = {
    "major": "1",
    "minor": "36",
    "gitVersion": "v1.36.0-standin",
    "gitCommit": "0" * 40,
    "gitTreeState": "clean",
    "buildDate": "2026-04-22T00:00:00Z",
    "goVersion": "go1.26",
    "compiler": "gc",
    "platform": "linux/amd64",
}
_VERBS = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]
_SHORT_NAMES = {
    "namespaces": ["ns"],
    "nodes": ["no"],
    "pods": ["po"],
    "configmaps": ["cm"],
    "serviceaccounts": ["sa"],
    "services": ["svc"],
    "events": ["ev"],
    "deployments": ["deploy"],
    "replicasets": ["rs"],
    "horizontalpodautoscalers": ["hpa"],
    "poddisruptionbudgets": ["pdb"],
}
_KINDS_OF_SUBRESOURCES = {
    "scale": {"group": "autoscaling", "version": "v1", "kind": "Scale"},
    "token": {"group": "authentication.k8s.io", "version": "v1", "kind": "TokenRequest"},
}


def document(path: str) -> Object | None:
    """Return the discovery document of a path, if there is one."""
    parts = path.strip("/").split("/")
    if parts == ["version"]:
        return VERSION
    if parts == ["api"]:
        return {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}
    if parts == ["apis"]:
        groups = sorted({resource.group for resource in RESOURCES if resource.group})
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": [_group(group) for group in groups]}
    if parts[0] == "apis" and len(parts) == 2 and any(resource.group == parts[1] for resource in RESOURCES):
        return {"apiVersion": "v1"} | _group(parts[1]) | {"kind": "APIGroup"}
    if (parts[0] == "api" and len(parts) == 2) or (parts[0] == "apis" and len(parts) == 3):
        group, version = ("", parts[1]) if parts[0] == "api" else (parts[1], parts[2])
        found = [resource for resource in RESOURCES if (resource.group, resource.version) == (group, version)]
        if found:
            resources = [entry for resource in found for entry in _entries(resource)]
            name = found[0].api_version
            return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": name, "resources": resources}
    return None


def _group(group: str) -> Object:
    versions = sorted({resource.version for resource in RESOURCES if resource.group == group})
    listed = [{"groupVersion": f"{group}/{version}", "version": version} for version in versions]
    return {"name": group, "versions": listed, "preferredVersion": listed[0]}


def _entries(resource: Resource) -> list[Object]:
    common = {"namespaced": resource.namespaced, "singularName": ""}
    verbs = ["create"] if resource.virtual else _VERBS
    entries: list[Object] = [
        {"name": resource.plural, "singularName": resource.kind.lower(), "kind": resource.kind, "verbs": verbs}
        | {"namespaced": resource.namespaced, "shortNames": _SHORT_NAMES.get(resource.plural, [])}
    ]
    for name in resource.subresources:
        kind = _KINDS_OF_SUBRESOURCES.get(name, {"kind": resource.kind})
        verbs = ["create"] if name == "token" else ["get", "patch", "update"]
        entries.append({"name": f"{resource.plural}/{name}", "verbs": verbs} | common | kind)
    return entries
