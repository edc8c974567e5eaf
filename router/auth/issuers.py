"""Issuers of tokens, and the requirements for their tokens: the section `token_issuers:` of a configuration file.

    token_issuers:
      corp:
        preset: entra-v2
        tenant: 7f0b0e9e-0000-4000-8000-7f7a6f1b0c11
        audience: api://models/{service}
        required_roles: [Models.Score]

Contains: the table of an issuer's settings, the presets, and the rules between settings. Does not contain: tokens
(`tokens`), the issuer's keys (`jwks`), reading of files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from router.config.listener_settings import is_loopback
from router.config.schema import ErrorCollector, Setting, SettingKind, SettingsError, parse_value
from router.config.unknown import unknown_setting

ROUTER_ISSUER_NAME = "router"
"""The name of the router as an issuer. No other issuer may have this name."""

ROUTER_ISS = "azureml-fe"
"""The `iss` of tokens that the router issues."""

_ROUTER_AUDIENCE = "azureml-fe/service/{service}"
SERVICE_PLACEHOLDER = "{service}"

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
"""Only signatures by key pairs: with a shared secret, everything that can verify tokens could also issue them."""

MAX_ISSUERS = 50

_NAME = re.compile(r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?", re.ASCII)
_NAME_RULE = "must be 1 to 63 of a-z, 0-9 and '-', beginning and ending with a letter or digit"
_TENANT_PLACEHOLDER = "{tenant}"

_URL: dict[str, Any] = {"pattern": r"https?://[!-~]{1,2000}", "pattern_text": "an https URL; http on loopback only"}

ISSUER_SETTINGS: tuple[Setting, ...] = (
    Setting(
        "preset",
        SettingKind.TEXT,
        "Sets issuer and jwks_url of a well-known issuer; each of them can still be set.",
        choices=("entra-v1", "entra-v2"),
    ),
    Setting(
        "tenant",
        SettingKind.TEXT,
        "Tenant of the preset: the directory's id, as in the tokens.",
        pattern=r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}",
        pattern_text="a GUID in lower case",
    ),
    Setting(
        "issuer",
        SettingKind.TEXT,
        "The exact value of iss in its tokens.",
        default_text="the preset's",
        pattern=r"[!-~]{1,2000}",
        pattern_text="visible ASCII characters",
    ),
    Setting(
        "audience",
        SettingKind.LIST,
        "A token's aud must contain one of these. {service} stands for the service's name and binds a token to it.",
        pattern=r"[!-~]{1,2000}",
        pattern_text="visible ASCII characters",
    ),
    Setting(
        "jwks_url",
        SettingKind.TEXT,
        "URL at which the issuer publishes its keys.",
        default_text="the preset's, or else found by OpenID discovery at `issuer`",
        **_URL,
    ),
    Setting(
        "algorithms",
        SettingKind.LIST,
        "Accepted signature algorithms; the algorithm that a token names must be one of these.",
        default=("RS256",),
        choices=ALGORITHMS,
    ),
    Setting(
        "required_claims",
        SettingKind.MAPPING,
        "Claims that a token must have; a claim that is a list, or a scope of words, must contain the text.",
        default={},
        default_text="none",
        pattern=r"[!-~]{1,200}",
        pattern_text="names of claims",
    ),
    Setting(
        "required_roles",
        SettingKind.LIST,
        "Roles that a token's roles must all contain.",
        default=(),
        pattern=r"[!-~]{1,200}",
        pattern_text="visible ASCII characters",
    ),
    Setting(
        "services",
        SettingKind.LIST,
        "Services that accept its tokens.",
        default=(),
        default_text="all",
        pattern=f"({_NAME.pattern}/)?{_NAME.pattern}",
        pattern_text="names of services",
    ),
    Setting(
        "clock_skew_seconds",
        SettingKind.FLOAT,
        "How far the issuer's clock may be from this one.",
        unit="s",
        default=60.0,
        maximum=600,
    ),
    Setting(
        "keys_refresh_seconds",
        SettingKind.FLOAT,
        "Time between two fetches of its keys; shorter if the response says so, or a token names an unknown key.",
        unit="s",
        default=3600.0,
        minimum=10,
        maximum=604_800,
    ),
    Setting(
        "keys_max_age_seconds",
        SettingKind.FLOAT,
        "How long known keys are used while they cannot be fetched.",
        unit="s",
        default=86_400.0,
        minimum=60,
        maximum=2_592_000,
    ),
    Setting(
        "ca_file",
        SettingKind.TEXT,
        "PEM bundle of authorities for its certificate; a relative path is relative to the file that sets it.",
        default_text="the system's",
        pattern=r"[^\x00]+",
        pattern_text="a path",
    ),
)

_BY_NAME = {setting.name: setting for setting in ISSUER_SETTINGS}

_PRESETS: Mapping[str, Mapping[str, str]] = {
    # Tokens of version 1 of Microsoft Entra ID. The application manifest of a resource determines the version of its
    # tokens (`requestedAccessTokenVersion`), whichever endpoint the client used.
    "entra-v1": {
        "issuer": "https://sts.windows.net/{tenant}/",
        "jwks_url": "https://login.microsoftonline.com/{tenant}/discovery/keys",
    },
    "entra-v2": {
        "issuer": "https://login.microsoftonline.com/{tenant}/v2.0",
        "jwks_url": "https://login.microsoftonline.com/{tenant}/discovery/v2.0/keys",
    },
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Issuer:
    """One issuer. `ISSUER_SETTINGS` explains the fields. `jwks_url` is None if discovery must find the URL."""

    name: str
    issuer: str
    audience: tuple[str, ...]
    jwks_url: str | None
    algorithms: tuple[str, ...]
    required_claims: tuple[tuple[str, str], ...] = ()
    required_roles: tuple[str, ...] = ()
    services: tuple[str, ...] = ()
    clock_skew_seconds: float = 60.0
    keys_refresh_seconds: float = 3600.0
    keys_max_age_seconds: float = 86_400.0
    ca_file: str | None = None

    def audiences_of(self, service: str) -> frozenset[str]:
        """Return the accepted values of `aud` in a token for a service."""
        return frozenset(audience.replace(SERVICE_PLACEHOLDER, service) for audience in self.audience)

    def serves(self, service: str) -> bool:
        """Return True if a service accepts this issuer's tokens."""
        return not self.services or service in self.services

    @property
    def discovery_url(self) -> str:
        """The URL of the issuer's metadata (OpenID Connect Discovery 1.0, section 4)."""
        return self.issuer.rstrip("/") + "/.well-known/openid-configuration"


ROUTER_ISSUER = Issuer(
    name=ROUTER_ISSUER_NAME,
    issuer=ROUTER_ISS,
    audience=(_ROUTER_AUDIENCE,),
    jwks_url=None,
    algorithms=("ES256",),
    keys_refresh_seconds=60.0,  # much shorter than the time between publication of a new key and its first signature
)
"""The router itself as an issuer. Its keys are read from its store, never fetched from a URL."""


def router_audience(service: str) -> str:
    """Return the `aud` of tokens that the router issues for a service."""
    return _ROUTER_AUDIENCE.replace(SERVICE_PLACEHOLDER, service)


def parse_issuers(
    raw: object, locate: Callable[[tuple[str, ...]], str], *, resolve: Callable[[str], str] = str
) -> dict[str, Issuer]:
    """Parse the section `token_issuers:` into issuers by name. `raw` is None for an empty section.

    `locate` returns the place in the file (for errors) of a path of keys within the section. `resolve` makes a file
    path in a setting absolute. Raises `SettingsError`.
    """
    if raw is None:
        return {}
    if not isinstance(raw, Mapping):
        raise SettingsError("token_issuers", None, "must be a mapping of names to issuers", locate(()))
    if len(raw) > MAX_ISSUERS:
        raise SettingsError("token_issuers", len(raw), f"must not be more than {MAX_ISSUERS} issuers", locate(()))
    issuers: dict[str, Issuer] = {}
    errors = ErrorCollector()
    for name, mapping in raw.items():
        with errors.collect():
            if not isinstance(name, str) or not _NAME.fullmatch(name):
                raise SettingsError("issuer name", name, _NAME_RULE, locate((str(name),)))
            if name == ROUTER_ISSUER_NAME:
                raise SettingsError("issuer name", name, "is the name of the router itself", locate((name,)))
            issuers[name] = _IssuerParser(name, mapping, locate, resolve).parse()
    errors.raise_errors()
    return issuers


@dataclass(frozen=True, slots=True)
class _IssuerParser:
    name: str
    mapping: object
    locate: Callable[[tuple[str, ...]], str]
    resolve: Callable[[str], str]

    def parse(self) -> Issuer:
        if not isinstance(self.mapping, Mapping):
            raise self._error("issuer", None, "must be a mapping of setting names to values")
        given: dict[str, Any] = {}
        errors = ErrorCollector()
        for name, raw in self.mapping.items():
            with errors.collect():
                if name not in _BY_NAME:
                    raise unknown_setting(str(name), _BY_NAME, self._place(str(name)))
                given[name] = parse_value(_BY_NAME[name], raw, self._place(name))
        errors.raise_errors()
        values = {setting.name: setting.default for setting in ISSUER_SETTINGS} | self._preset(given) | given
        self._check(values)
        del values["preset"], values["tenant"]
        if values["ca_file"] is not None:
            values["ca_file"] = self.resolve(values["ca_file"])
        values["required_claims"] = tuple(values["required_claims"].items())
        return Issuer(name=self.name, **values)

    def _preset(self, given: Mapping[str, Any]) -> dict[str, str]:
        preset, tenant = given.get("preset"), given.get("tenant")
        if preset is None:
            if tenant is not None:
                raise self._error("tenant", tenant, "needs a preset")
            return {}
        if tenant is None:
            raise self._error("preset", preset, "needs tenant, the id of the directory")
        return {name: text.replace(_TENANT_PLACEHOLDER, tenant) for name, text in _PRESETS[preset].items()}

    def _check(self, values: Mapping[str, Any]) -> None:
        if values["issuer"] is None:
            raise self._error("issuer", None, "must be given, or a preset")
        if values["issuer"] == ROUTER_ISS:
            raise self._error("issuer", ROUTER_ISS, "is the issuer of the router itself")
        if not values["audience"]:
            raise self._error(
                "audience", None, "must be given: otherwise a token for any other program would be accepted"
            )
        if not values["algorithms"]:
            raise self._error("algorithms", None, "must not be empty")
        url_setting = "issuer" if values["jwks_url"] is None else "jwks_url"
        if not is_safe_url(values[url_setting]):
            problem = "must be an https URL (http on loopback only)"
            if url_setting == "issuer":
                problem += ", as its keys are found by discovery there; or give jwks_url"
            raise self._error(url_setting, values[url_setting], problem)
        if values["keys_max_age_seconds"] < values["keys_refresh_seconds"]:
            problem = f"must be at least keys_refresh_seconds ({values['keys_refresh_seconds']:g})"
            raise self._error("keys_max_age_seconds", values["keys_max_age_seconds"], problem)

    def _place(self, name: str = "") -> str:
        source = self.locate((self.name, name) if name else (self.name,))
        return (f"{source}: " if source else "") + f"token issuer {self.name}"

    def _error(self, setting: str, value: object, problem: str) -> SettingsError:
        return SettingsError(setting, value, problem, self._place(setting))


def is_safe_url(url: str) -> bool:
    """Return True if keys from a URL can be trusted: https, or http on loopback; no user name and no fragment."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return False
    if not parts.hostname or "@" in parts.netloc or parts.fragment or port == 0 or not url.isascii():
        return False
    return parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname))
