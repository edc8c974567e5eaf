"""The second format (CLI v2): an online endpoint, and its deployments of type kubernetes or managed.

Names, meanings and defaults of keys are those of the schemas of azure-ai-ml and of the reference of its YAML. An
endpoint is a service, a deployment one of its versions.
"""

import os
import re
from collections.abc import Iterable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

from router.azureml.keys import KeyReader
from router.azureml.services import (
    AZUREML_ROUTES,
    AZUREML_SCORING_ROUTE,
    MLFLOW_ROUTES,
    DeclaredService,
    DeclaredVersion,
    Key,
    Loss,
    Program,
    ProgramKind,
    Route,
    Routes,
    loss_of,
)
from router.config.dialects import SETTING_NAMES, KeyPath
from router.config.schema import ErrorCollector, SettingsError
from router.config.service_settings import COMPATIBILITY_DEFAULTS, VERSION_SETTINGS
from router.config.yaml_document import YamlDocument

MAPPINGS = ("tags", "properties")
"""Settings whose value is a mapping."""

_VERSION = {setting.name for setting in VERSION_SETTINGS}
_READ_APART = frozenset((*MAPPINGS, "data_collector", "traffic_percentile", "num_replicas", "scoring_path"))
_PATHS = {
    path: row.setting
    for row in SETTING_NAMES
    for path in row.v2
    if row.setting in _VERSION and row.setting not in _READ_APART and path[0] != "resources"
}

_ENDPOINT_LOSSES: dict[KeyPath, str] = {
    ("identity",): "replicas have the identity of their pods: the Deployment's service account",
    ("mirror_traffic",): "the router sends each request to one version only",
    ("public_network_access",): "the router's Service decides who reaches it: inferenceRouterServiceType of the chart",
}
_DEPLOYMENT_LOSSES: dict[KeyPath, str] = {
    ("egress_public_network_access",): "a NetworkPolicy limits what pods reach",
    ("private_network_connection",): "a NetworkPolicy limits what pods reach",
}
_DEFAULT_INSTANCE_TYPE = "defaultinstancetype"
_INSTANCE_TYPE = (
    "instance types are objects of Azure; resources, nodeSelector and tolerations of the Deployment have their effect"
)
_TRITON = "triton_model"
_DATA_ASSET = "data assets are in the workspace; give the folder as data.path"
_ONLY_IN_AZURE = "only Azure ML uses it"
_ROUTES: KeyPath = ("environment", "inference_config")
_MEANINGLESS: tuple[KeyPath, ...] = tuple(
    (name,)
    for name in (
        "$schema", "type", "kind", "id", "provisioning_state", "location",
        "scoring_uri", "openapi_uri", "resourceGroup", "creation_context",
    )
)  # fmt: skip
"""Keys that name a resource of Azure, or that `az ml online-endpoint show` adds."""

_REFERENCE = re.compile(r"azureml:|/subscriptions/|https?:", re.IGNORECASE)
_MODEL_REFERENCE = re.compile(r"azureml:([A-Za-z0-9._-]+)[:@]([A-Za-z0-9._-]+)")
_CPU = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,15})?)(m?)", re.ASCII)
_MEMORY = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,15})?)([kKMGT]i?|)", re.ASCII)
_PORT = re.compile(r"[0-9]{1,5}", re.ASCII)
_PERCENT = re.compile(r"[0-9]{1,3}", re.ASCII)
_POWERS = {"": 0, "k": 1, "M": 2, "G": 3, "T": 4}
_GIGABYTE = 2**30


class Endpoint:
    """The keys of an endpoint's file."""

    def __init__(self, document: YamlDocument, errors: ErrorCollector) -> None:
        """Collects errors."""
        reader = self.reader = KeyReader(document, errors)
        self.name = _required(reader, ("name",), document, errors)
        self.settings: dict[str, Key] = {}
        self.traffic = reader.mapping(("traffic",)) or {}
        self.where = document.locate(("name",))
        self._read_authentication(errors)
        self.shared = _descriptions(reader)
        reader.ignore(("compute",), *_MEANINGLESS)
        for path, reason in _ENDPOINT_LOSSES.items():
            reader.lose(path, reason)
        reader.lose_others("v2")
        self.has_valid_traffic = self._check_traffic(errors)

    def _read_authentication(self, errors: ErrorCollector) -> None:
        mode = self.reader.text(("auth_mode",))
        if mode is None:
            return
        match mode.value.lower().replace("_", ""):
            case "key":
                self.settings["auth_enabled"] = mode.holds("true")
            case "amltoken":
                self.settings["token_auth_enabled"] = mode.holds("true")
            case "aadtoken":
                self.settings["token_auth_enabled"] = mode.holds("true")
                reason = "the router accepts tokens of Microsoft Entra ID only from a token issuer in `token_issuers`"
                self.reader.losses.append(loss_of(mode, reason))
            case _:
                problem = "must be key, aml_token or aad_token"
                errors.add(SettingsError("auth_mode", mode.value, problem, mode.where))

    def _check_traffic(self, errors: ErrorCollector) -> bool:
        shares = [_percent(key, errors) for key in self.traffic.values()]
        total = sum(share for share in shares if share is not None)
        if None in shares:
            return False
        if self.traffic and total not in (0, 100):
            where = next(iter(self.traffic.values())).where
            errors.add(SettingsError("traffic", total, "the shares must add up to 100, or to 0", where))
            return False
        return True


def read_endpoint(
    endpoint: Endpoint | None,
    name: str,
    deployments: Iterable[YamlDocument],
    errors: ErrorCollector,
    *,
    has_unread: bool = False,
) -> tuple[DeclaredService, list[Loss]]:
    """Return the service of an endpoint and its deployments, and the losses of the deployments. The endpoint's file may
    be missing. With `has_unread`, a deployment of the traffic may be missing, too. Collects errors."""
    versions: dict[str, DeclaredVersion] = {}
    losses: list[Loss] = []
    for document in deployments:
        reader = KeyReader(document, errors)
        version = _read_deployment(reader, document, errors)
        if version.name in versions:
            where = document.locate(("name",))
            errors.add(SettingsError("name", version.name, "another file has a deployment of this name", where))
        versions[version.name] = version
        losses += reader.losses
    traffic = endpoint.traffic if endpoint is not None else {}
    if endpoint is not None:
        for each, key in traffic.items():
            if each not in versions and key.value != "0" and not has_unread:
                problem = f"no file has this deployment; given: {', '.join(versions) or 'none'}"
                errors.add(SettingsError(key.name, key.value, problem, key.where))
        if not versions:
            problem = "no file has a deployment of this endpoint (endpoint_name)"
            errors.add(SettingsError("name", endpoint.name, problem, endpoint.where))
        if not endpoint.has_valid_traffic:
            traffic = {}  # so that the settings of the versions have no second error
    shared = endpoint.shared if endpoint is not None else {}
    service = DeclaredService(
        name=name,
        settings=(endpoint.settings if endpoint is not None else {}) | shared,
        versions=tuple(_with_traffic(versions, traffic)),
    )
    return service, losses


def _with_traffic(versions: Mapping[str, DeclaredVersion], traffic: Mapping[str, Key]) -> Iterable[DeclaredVersion]:
    """Yield the versions with their shares. The one with the largest share is the default, which gets the rest. Without
    shares it is the first one."""
    given = {name: key.value for name, key in traffic.items() if name in versions}
    shares = {name: int(text) for name, text in given.items() if _PERCENT.fullmatch(text)}
    default = max(shares, key=lambda name: shares[name]) if any(shares.values()) else None
    first = next(iter(versions), None)
    for name, version in versions.items():
        settings = dict(version.settings)
        if name == default and len(versions) > 1:
            settings["is_default"] = traffic[name].holds("true")
        elif default is None and name == first and len(versions) > 1:
            settings["is_default"] = Key("true", "the first deployment", "without traffic", is_given=False)
        elif shares.get(name) and name != default:
            settings["traffic_percentile"] = traffic[name].holds(str(shares[name]))
        yield DeclaredVersion(name=name, settings=settings, program=version.program)


def _read_deployment(reader: KeyReader, document: YamlDocument, errors: ErrorCollector) -> DeclaredVersion:
    name = _required(reader, ("name",), document, errors)
    reader.ignore(("endpoint_name",), *_MEANINGLESS)
    settings = _descriptions(reader)
    for path, setting in _PATHS.items():
        if (key := reader.text(path)) is not None:
            settings[setting] = key
    _read_scale_settings(reader, settings, errors)
    resources = _read_resources(reader, settings, errors)
    _read_data_collector(reader, settings)
    kind = reader.text(("instance_type",))
    if kind is not None and kind.value != _DEFAULT_INSTANCE_TYPE:
        reader.losses.append(loss_of(kind, _INSTANCE_TYPE))
    for path, reason in _DEPLOYMENT_LOSSES.items():
        reader.lose(path, reason)
    program = _read_program(reader, Path(document.file).absolute().parent, resources, settings, errors)
    reader.lose_others("v2")
    return DeclaredVersion(name=name, settings=_defaults(document) | settings, program=program)


def _defaults(document: YamlDocument) -> dict[str, Key]:
    """Return the defaults of this format that differ from those of the first one, which the router has."""
    return {
        name: Key(str(value), "default of Azure ML", document.file, is_given=False)
        for name, value in COMPATIBILITY_DEFAULTS["v2"].items()
        if name != "autoscale_max_replicas"  # `_read_scale_settings` sets it
    }


def _read_scale_settings(reader: KeyReader, settings: dict[str, Key], errors: ErrorCollector) -> None:
    kind = reader.text(("scale_settings", "type"))
    count = reader.text(("instance_count",))
    scaled = {name: settings.pop(name) for name in list(settings) if name.startswith("autoscale_")}
    if kind is not None and kind.value.lower().replace("_", "") == "targetutilization":
        if count is not None:
            reader.losses.append(loss_of(count, "it has no effect with scale_settings.type: target_utilization"))
        settings["autoscale_enabled"] = kind.holds("true")
        maximum = str(COMPATIBILITY_DEFAULTS["v2"]["autoscale_max_replicas"])
        settings["autoscale_max_replicas"] = Key(maximum, "default of Azure ML", kind.where, is_given=False)
        settings |= scaled
        return
    if kind is not None and kind.value.lower() != "default":
        problem = "must be default or target_utilization"
        errors.add(SettingsError("scale_settings.type", kind.value, problem, kind.where))
    for key in scaled.values():
        errors.add(SettingsError(key.name, key.value, "needs scale_settings.type: target_utilization", key.where))
    settings["num_replicas"] = count or Key("1", "instance_count", reader.file, is_given=False)


def _read_resources(
    reader: KeyReader, settings: dict[str, Key], errors: ErrorCollector
) -> dict[str, Mapping[str, str]]:
    """Return the quantities of `requests` and `limits`, and set the settings that they imply."""
    resources: dict[str, Mapping[str, str]] = {}
    for part, suffix in (("requests", ""), ("limits", "_limit")):
        quantities = {}
        for resource, setting, convert in (("cpu", "cpu_cores", _cores), ("memory", "memory_gb", _gigabytes)):
            if (key := reader.text(("resources", part, resource))) is None:
                continue
            if (number := convert(key.value)) is None:
                errors.add(SettingsError(key.name, key.value, "must be a quantity of Kubernetes", key.where))
                continue
            quantities[resource] = key.value
            settings[setting + suffix] = key.holds(number)
        for resource in ("nvidia.com/gpu", "gpu"):
            if (key := reader.text(("resources", part, resource))) is not None:
                quantities["nvidia.com/gpu"] = key.value
                settings["gpu_cores"] = key
        if quantities:
            resources[part] = quantities
    return resources


def _read_data_collector(reader: KeyReader, settings: dict[str, Key]) -> None:
    """Set `data_collector`, whose form is the same here. Parts of a collection that only Azure ML uses are losses."""
    given = reader.key(("data_collector",))
    if given is None:
        return
    settings["data_collector"] = given  # its own parser reports what is invalid
    collections = given.value.get("collections") if isinstance(given.value, Mapping) else None
    if not isinstance(collections, Mapping):
        return
    kept: dict[str, Any] = {}
    for name, collection in collections.items():
        kept[name] = collection
        for part in collection if isinstance(collection, Mapping) else ():
            is_reference = part == "data" and isinstance(collection[part], str)
            if part not in ("enabled", "data") or is_reference:
                path = ("data_collector", "collections", name, part)
                reader.lose(path, _DATA_ASSET if is_reference else _ONLY_IN_AZURE, unless_off=False)
                kept[name] = {each: value for each, value in kept[name].items() if each != part}
    settings["data_collector"] = given.holds({**given.value, "collections": kept})


def _cores(text: str) -> str | None:
    """Return the number of cores of a quantity of Kubernetes: `100m` is 0.1."""
    match = _CPU.fullmatch(text)
    return f"{Decimal(match[1]) / (1000 if match[2] else 1):.10g}" if match else None


def _gigabytes(text: str) -> str | None:
    """Return the GB (GiB, as in Azure) of a quantity of Kubernetes: `512Mi` is 0.5."""
    match = _MEMORY.fullmatch(text)
    if match is None:
        return None
    unit = match[2].removesuffix("i")
    base = 1024 if match[2].endswith("i") else 1000
    return f"{Decimal(match[1]) * base ** _POWERS[unit.replace('K', 'k')] / _GIGABYTE:.6f}".rstrip("0").rstrip(".")


def _read_program(
    reader: KeyReader,
    directory: Path,
    resources: Mapping[str, Mapping[str, str]],
    settings: dict[str, Key],
    errors: ErrorCollector,
) -> Program:
    code = reader.text(("code_configuration", "code"))
    script = reader.text(("code_configuration", "scoring_script"))
    if code is not None and _REFERENCE.match(code.value):
        problem = "is in the workspace; download the code, and give its directory"
        errors.add(SettingsError(code.name, code.value, problem, code.where))
        code = script = None
    environment = _read_environment(reader, errors)
    model = _read_model(reader, directory)
    source_directory = (directory / code.value).resolve() if code else None
    entry_script = (source_directory or directory) / script.value if script else None
    is_python = entry_script is not None and entry_script.suffix == ".py"
    kind, source, routes = ProgramKind.UNKNOWN, None, environment.routes
    if is_python and routes.scoring == AZUREML_SCORING_ROUTE:
        kind, source = ProgramKind.ENTRY_SCRIPT, script
    elif environment.has_routes:
        kind, source = ProgramKind.CONTAINER, environment.image
    elif model.is_mlflow:
        kind, source, routes = ProgramKind.MLFLOW, model.key, MLFLOW_ROUTES
    if routes.scoring.path != AZUREML_SCORING_ROUTE.path:
        key = reader.text((*_ROUTES, "scoring_route", "path")) if environment.has_routes else model.key
        assert key is not None, "the path comes from it"
        settings["scoring_path"] = key.holds(routes.scoring.path)
    if kind in (ProgramKind.ENTRY_SCRIPT, ProgramKind.MLFLOW) and source is not None:
        settings["cancellation"] = Key("none", "cancellation", source.where, is_given=False)
    return Program(
        kind=kind,
        source=source,
        script=script,
        entry_script=entry_script,
        source_directory=source_directory,
        image=environment.image,
        packages=environment.packages,
        model=model.key,
        model_directory=model.directory,
        model_path=model.path,
        model_mount_path=reader.text(("model_mount_path",)),
        environment=reader.variables(("environment_variables",)),
        routes=routes,
        resources=resources,
    )


class _Environment(NamedTuple):
    """The image, the key with the packages that it lacks, and the routes of the program."""

    image: Key | None = None
    packages: Key | None = None
    routes: Routes = AZUREML_ROUTES
    has_routes: bool = False


def _read_environment(reader: KeyReader, errors: ErrorCollector) -> _Environment:
    environment = reader.key(("environment",))
    if environment is None or isinstance(environment.value, str):
        return _Environment(packages=environment)  # a reference to an environment of the workspace
    reader.forget(("environment",))
    for name in ("name", "version", "description", "tags", "properties", "os_type", "$schema"):
        reader.ignore(("environment", name))
    image = reader.text(("environment", "image"))
    packages = [reader.key(("environment", name)) for name in ("conda_file", "build", "dockerfile")]
    scoring, readiness, liveness = (_route(reader, name, errors) for name in ("scoring", "readiness", "liveness"))
    routes = AZUREML_ROUTES
    if scoring is not None:
        routes = Routes(scoring, readiness or Route("/", scoring.port), liveness or Route("/", scoring.port))
    missing = next((key for key in packages if key is not None), None)
    return _Environment(image, missing, routes, has_routes=scoring is not None)


def _route(reader: KeyReader, name: str, errors: ErrorCollector) -> Route | None:
    """Return a route of `inference_config`."""
    base = (*_ROUTES, f"{name}_route")
    path, port = reader.text((*base, "path")), reader.text((*base, "port"))
    if path is None and port is None:
        return None
    if path is None or port is None or not _PORT.fullmatch(port.value) or not 0 < int(port.value) < 65536:
        given = path or port
        problem = "must have a path, and a port from 1 to 65535"
        errors.add(SettingsError(".".join(base), None, problem, given.where if given else reader.file))
        return None
    return Route(path.value, int(port.value))


class _Model(NamedTuple):
    """The key of a model, its directory below that of all models, its local path if it has one, and whether it has
    MLflow's format."""

    key: Key | None
    directory: str
    path: Path | None = None
    is_mlflow: bool = False


def _read_model(reader: KeyReader, directory: Path) -> _Model:
    model = reader.key(("model",))
    if model is None or isinstance(model.value, str):
        reference = _MODEL_REFERENCE.fullmatch(model.value) if model else None
        return _Model(model, f"{reference[1]}/{reference[2]}" if reference else "model/1")
    reader.forget(("model",))
    reader.ignore(*(("model", each) for each in ("description", "tags", "properties", "flavors", "stage", "$schema")))
    name, version = reader.text(("model", "name")), reader.text(("model", "version"))
    of_all = f"{name.value if name else 'model'}/{version.value if version else '1'}"
    kind, path = reader.text(("model", "type")), reader.text(("model", "path"))
    if path is None:
        return _Model(model, of_all)
    if kind is not None and kind.value == _TRITON:
        reader.losses.append(loss_of(kind, "Azure ML has an image of Triton for it; here, environment.image names one"))
    local = None if ":" in path.value else (directory / path.value).resolve()
    has_format = local is not None and os.path.isfile(local / "MLmodel")  # False for names that are too long
    return _Model(path, of_all, local, has_format or (kind is not None and kind.value.startswith("mlflow")))


def _descriptions(reader: KeyReader) -> dict[str, Key]:
    """Return the settings that describe an endpoint or a deployment."""
    given = {name: reader.texts((name,)) for name in MAPPINGS} | {"description": reader.text(("description",))}
    return {name: key for name, key in given.items() if key is not None}


def _required(reader: KeyReader, path: KeyPath, document: YamlDocument, errors: ErrorCollector) -> str:
    key = reader.text(path)
    if key is None:
        errors.add(SettingsError(".".join(path), None, "is missing", document.file))
    return key.value if key else ""


def _percent(key: Key, errors: ErrorCollector) -> int | None:
    if _PERCENT.fullmatch(key.value) and int(key.value) <= 100:
        return int(key.value)
    errors.add(SettingsError(key.name, key.value, "must be a whole number from 0 to 100", key.where))
    return None
