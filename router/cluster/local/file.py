"""The local YAML file: services, how each of their versions is launched, and settings of the router.

Lives here: the file's format beyond the settings of services, and what depends on the file's folder. Must not live
here: which YAML is accepted (`document`), the settings themselves (`service_settings`, `settings`), starting processes,
and making keys that the file does not give.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from router.auth.issuers import Issuer, parse_issuers
from router.cluster.local.document import Document, read_document
from router.service_settings import COMPATIBLE_DEFAULTS
from router.services import Service, SettingPath, VersionKey, parse_service, place_text
from router.settings import PATHS_OF_FILES, load_settings, parse_router_values
from router.values import Kind, Scope, Setting, SettingsError, parse_value, settings_of, unknown_name

_launch = settings_of(Scope.VERSION)

LAUNCH_SETTINGS: tuple[Setting, ...] = (
    _launch(
        "entry_script",
        Kind.TEXT,
        "Azure ML entry script (init(), run(data)) that azureml-inference-server-http runs; relative to the file.",
        pattern_means="the path of a file",
    ),
    _launch(
        "command",
        Kind.LIST,
        "Program and arguments of any HTTP server, run in the file's folder; {port} (needed) and {host} are filled in.",
        pattern=r"[^\x00]*",
        pattern_means="a program and its arguments, one of which holds {port}",
        secret=True,
    ),
    _launch(
        "addresses",
        Kind.LIST,
        "Replicas that something else runs; they are not scaled.",
        pattern=r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}",
        pattern_means="host:port, each once",
    ),
    _launch(
        "readiness_path",
        Kind.TEXT,
        "A replica is ready when GET of this path is answered with a status below 500.",
        default="/",
        pattern=r"/[!-~]*",
        pattern_means="a path that begins with '/'",
    ),
    _launch(
        "environment",
        Kind.MAPPING,
        "Environment variables that its replicas get; a version adds to those of its service.",
        default={},
        default_means="none",
        pattern=r"[A-Za-z_][A-Za-z0-9_]*",
        pattern_means="names of letters, digits and '_'",
        secret=True,
    ),
)

_BY_NAME = {setting.name: setting for setting in LAUNCH_SETTINGS}
_SECTIONS = ("services", "router", "token_issuers")
_ROUTER_SECTIONS = ("router", "token_issuers")
_WAYS = ("entry_script", "command", "addresses")


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """How the replicas of a version come to be: exactly one of `entry_script`, `command` and `addresses` is given.

    Processes run in `folder`, which is the file's. `environment` may hold secrets.
    """

    entry_script: Path | None = None
    command: tuple[str, ...] = ()
    addresses: tuple[tuple[str, int], ...] = ()
    readiness_path: str
    folder: Path
    environment: Mapping[str, str] = field(repr=False)

    def filled_command(self, host: str, port: int) -> tuple[str, ...]:
        """`command` with its placeholders filled; other braces, such as those of a JSON argument, stay."""
        return tuple(word.replace("{port}", str(port)).replace("{host}", host) for word in self.command)


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalConfig:
    """What a local file says; `router` holds typed values by the names of `settings.ROUTER_SETTINGS`."""

    services: Mapping[str, Service]
    launches: Mapping[VersionKey, Launch]
    router: Mapping[str, object]
    token_issuers: Mapping[str, Issuer]


def load_local(
    path: Path, *, environ: Mapping[str, str] | None = None, flags: Mapping[str, object] | None = None
) -> LocalConfig:
    """What the file at `path` says, wholly checked. Raises `SettingsError` that names file, line and setting.

    `environ` and `flags` may set the router's `compatibility`, which says what defaults services have.
    """
    document = read_document(path)
    top = document.values if isinstance(document.values, dict) else {}
    for name in top:
        if name not in _SECTIONS:
            raise unknown_name(name, _SECTIONS, document.locate((name,)))
    named = top.get("services")
    if not isinstance(named, dict) or not named:
        allowed = "must be a mapping of at least one service name to its settings"
        raise SettingsError("services", None, allowed, document.locate(("services",)))
    # The folder as the user sees it: a mounted file may be a link to elsewhere, its neighbours stand beside the link.
    folder = Path(os.path.abspath(path)).parent
    router = _load_router(document, top.get("router"), folder)
    compatibility = load_settings(environ=environ or {}, file=router, flags=flags).compatibility
    services: dict[str, Service] = {}
    launches: dict[VersionKey, Launch] = {}
    for name, mapping in named.items():
        loader = _ServiceLoader(document, folder, name, COMPATIBLE_DEFAULTS[compatibility])
        services[name], found = loader.load(mapping)
        launches |= {(name, version): launch for version, launch in found.items()}
    issuers = load_issuers(document, folder)
    for issuer in issuers.values():
        for name in issuer.services:
            if name not in services:
                place = document.locate(("token_issuers", issuer.name, "services"))
                allowed = f"must be services of this file: {', '.join(services)}"
                raise SettingsError("services", name, allowed, f"{place}: token issuer {issuer.name}")
    return LocalConfig(services=services, launches=launches, router=router, token_issuers=issuers)


def load_issuers(document: Document, folder: Path) -> dict[str, Issuer]:
    """The section `token_issuers` of a file in `folder`. Raises `SettingsError`."""
    top = document.values if isinstance(document.values, dict) else {}
    return parse_issuers(
        top.get("token_issuers"),
        lambda path: document.locate(("token_issuers", *path)),
        resolve=lambda given: str(folder / Path(given).expanduser()),
    )


def is_router_file(path: Path) -> bool:
    """Whether a file is for `load_router_file`: it has sections of that and no others. Raises `SettingsError`."""
    top = read_document(path).values
    return isinstance(top, dict) and bool(top) and top.keys() <= set(_ROUTER_SECTIONS)


def load_router_file(path: Path) -> tuple[Mapping[str, object], dict[str, Issuer]]:
    """The sections `router` and `token_issuers` of a file that has no others, as `azureml-fe serve` reads it. Raises
    `SettingsError`."""
    document = read_document(path)
    top = document.values if isinstance(document.values, dict) else {}
    for name in top:
        if name not in _ROUTER_SECTIONS:
            raise unknown_name(name, _ROUTER_SECTIONS, document.locate((name,)))
    folder = Path(os.path.abspath(path)).parent
    return _load_router(document, top.get("router"), folder), load_issuers(document, folder)


def _load_router(document: Document, raw: object, folder: Path) -> dict[str, Any]:
    if raw is not None and not isinstance(raw, dict):
        raise SettingsError(
            "router", None, "must be a mapping of setting names to values", document.locate(("router",))
        )
    values = parse_router_values(raw or {}, lambda name: f"{document.locate(('router', name))}: router")
    if not values.get("state_dir", "~").startswith("~"):
        values["state_dir"] = str(folder / values["state_dir"])
    values |= {name: str(folder / values[name]) for name in PATHS_OF_FILES if values.get(name) is not None}
    return values


@dataclass(frozen=True, slots=True)
class _ServiceLoader:
    """Reads one service: how its versions are launched here, its settings in `services`.

    `own` is what a version gives itself, `above` what stands beside `versions`; the only version of a service that
    names none has all of it as its own.
    """

    document: Document
    folder: Path
    name: str
    defaults: Mapping[str, object]

    def load(self, mapping: object) -> tuple[Service, dict[str, Launch]]:
        if not isinstance(mapping, dict):
            raise SettingsError("service", None, "must be a mapping of setting names to values", self._place(()))
        service = parse_service(
            self.name,
            self._with_counted_addresses(mapping),
            locate=lambda path: self.document.locate(("services", self.name, *path)),
            other_names=_BY_NAME,
            defaults=self.defaults,
        )
        if "versions" not in mapping:
            return service, {service.default_version.name: self._launch(mapping, (), {})}
        return service, {
            version.name: self._launch(mapping["versions"][version.name], ("versions", version.name), mapping)
            for version in service.versions
        }

    def _place(self, path: SettingPath) -> str:
        return place_text(self.document.locate(("services", self.name, *path)), self.name, path)

    def _with_counted_addresses(self, mapping: dict[str, Any]) -> dict[str, Any]:
        """The mapping, where versions with `addresses` are not scaled and have as many replicas as those."""
        versions = mapping.get("versions")
        if "versions" not in mapping:
            return self._count_addresses(mapping, (), {})
        if not isinstance(versions, dict):
            return mapping
        return mapping | {
            "versions": {
                name: self._count_addresses(own, ("versions", name), mapping) if isinstance(own, dict) else own
                for name, own in versions.items()
            }
        }

    def _count_addresses(self, own: dict[str, Any], path: SettingPath, above: dict[str, Any]) -> dict[str, Any]:
        holder, holder_path = (own, path) if any(way in own for way in _WAYS) else (above, ())
        if "addresses" not in holder:
            return own
        for level, level_path in ((holder, holder_path), (own, path)):
            for name in level:
                if name == "num_replicas" or name.startswith("autoscale_"):
                    where = self._place((*level_path, name))
                    raise SettingsError(name, level[name], "not allowed with addresses, which are not scaled", where)
        count = len(_addresses(holder["addresses"], self._place((*holder_path, "addresses"))))
        return own | {"autoscale_enabled": False, "num_replicas": count}

    def _launch(self, own: dict[str, Any], path: SettingPath, above: dict[str, Any]) -> Launch:
        holder, holder_path = (own, path) if any(way in own for way in _WAYS) else (above, ())
        ways = [way for way in _WAYS if way in holder]
        if len(ways) != 1:
            allowed = "exactly one of entry_script, command and addresses must be given"
            raise SettingsError(" and ".join(ways) or "launch", None, allowed, self._place(path))
        way, raw, where = ways[0], holder[ways[0]], self._place((*holder_path, ways[0]))
        if way == "addresses" and "environment" in own:
            where = self._place((*path, "environment"))
            raise SettingsError("environment", None, "not allowed with addresses, which are not started here", where)
        return Launch(
            entry_script=self._entry_script(raw, where) if way == "entry_script" else None,
            command=_command(raw, where) if way == "command" else (),
            addresses=_addresses(raw, where) if way == "addresses" else (),
            readiness_path=self._value("readiness_path", (own, path), (above, ())),
            folder=self.folder,
            environment=self._value("environment", (above, ())) | self._value("environment", (own, path)),
        )

    def _value(self, name: str, *levels: tuple[dict[str, Any], SettingPath]) -> Any:
        """The value in the first level that has one, else the default."""
        for level, path in levels:
            if name in level:
                return parse_value(_BY_NAME[name], level[name], self._place((*path, name)))
        return _BY_NAME[name].default

    def _entry_script(self, raw: object, where: str) -> Path:
        script: Path = self.folder / parse_value(_BY_NAME["entry_script"], raw, where)
        if not script.is_file():
            raise SettingsError("entry_script", raw, f"must be a file, there is none at {script}", where)
        return script


def _command(raw: object, where: str) -> tuple[str, ...]:
    setting = _BY_NAME["command"]
    # One text would be split at commas, which is no way to write a command.
    words: tuple[str, ...] = parse_value(setting, raw, where) if isinstance(raw, list) else ()
    if not words or not words[0] or not any("{port}" in word for word in words):
        raise SettingsError("command", None, setting.allowed, where)
    return words


def _addresses(raw: object, where: str) -> tuple[tuple[str, int], ...]:
    setting = _BY_NAME["addresses"]
    texts: tuple[str, ...] = parse_value(setting, raw, where)
    pairs = [text.rpartition(":") for text in texts]
    addresses = tuple((host.strip("[]"), int(port)) for host, _, port in pairs)
    if not addresses or len(set(addresses)) < len(addresses) or not all(0 < port < 65536 for _, port in addresses):
        raise SettingsError("addresses", raw, setting.allowed, where)
    return addresses
