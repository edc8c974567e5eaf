"""Who may issue tokens, and what their tokens must say: the `token_issuers:` section of a file.

    token_issuers:
      corp:
        preset: entra-v2
        tenant: 7f0b0e9e-0000-4000-8000-7f7a6f1b0c11
        audience: api://models/{service}
        required_roles: [Models.Score]

Lives here: the table of an issuer's settings, the presets, the rules between settings, and what a claim must be to
satisfy a required one. Must not live here: tokens (`tokens`), the issuer's keys (`jwks`), reading of files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from router.values import Kind, Scope, Setting, SettingsError, parse_value, settings_of, unknown_name

OWN = "router"
"""The name of the router as an issuer, which no other one may have."""

OWN_ISSUER = "azureml-fe"
_OWN_AUDIENCE = "azureml-fe/service/{service}"
SERVICE_PLACEHOLDER = "{service}"

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
"""Signatures by a key pair, all of them: with a shared secret whoever can check tokens could also make them."""

MOST_ISSUERS = 50

_NAME = re.compile(r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?", re.ASCII)
_NAME_MEANS = "must be 1 to 63 of a-z, 0-9 and '-', beginning and ending with a letter or digit"
_TENANT = "{tenant}"

_issuer = settings_of(Scope.ISSUER)

_URL: dict[str, Any] = {"pattern": r"https?://[!-~]{1,2000}", "pattern_means": "an https URL; http on loopback only"}

ISSUER_SETTINGS: tuple[Setting, ...] = (
    _issuer(
        "preset",
        Kind.TEXT,
        "Gives issuer, jwks_url and algorithms of a well-known issuer; each can still be set.",
        choices=("entra-v1", "entra-v2"),
    ),
    _issuer(
        "tenant",
        Kind.TEXT,
        "Tenant of the preset: the directory's id, as it stands in the tokens.",
        pattern=r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}",
        pattern_means="a GUID in lower case",
    ),
    _issuer(
        "issuer",
        Kind.TEXT,
        "What a token's iss must be, character by character.",
        default_means="the preset's",
        pattern=r"[!-~]{1,2000}",
        pattern_means="visible ASCII characters",
    ),
    _issuer(
        "audience",
        Kind.LIST,
        "A token's aud must have one of these. {service} stands for the service's name and binds a token to it.",
        pattern=r"[!-~]{1,2000}",
        pattern_means="visible ASCII characters",
    ),
    _issuer(
        "jwks_url",
        Kind.TEXT,
        "Where the issuer publishes its keys.",
        default_means="the preset's, else what OpenID discovery at `issuer` says",
        **_URL,
    ),
    _issuer(
        "algorithms",
        Kind.LIST,
        "Signatures that are accepted, whatever a token says of itself.",
        default=("RS256",),
        choices=ALGORITHMS,
    ),
    _issuer(
        "required_claims",
        Kind.MAPPING,
        "Claims that a token must have; one that is a list, or a scope of words, must contain the text.",
        default={},
        default_means="none",
        pattern=r"[!-~]{1,200}",
        pattern_means="names of claims",
    ),
    _issuer(
        "required_roles",
        Kind.LIST,
        "Roles that a token's roles must contain, all of them.",
        default=(),
        pattern=r"[!-~]{1,200}",
        pattern_means="visible ASCII characters",
    ),
    _issuer(
        "services",
        Kind.LIST,
        "Services that accept its tokens.",
        default=(),
        default_means="all",
        pattern=_NAME.pattern,
        pattern_means="names of services",
    ),
    _issuer(
        "clock_skew_seconds",
        Kind.FLOAT,
        "How far the issuer's clock may be from this one.",
        unit="s",
        default=60.0,
        maximum=600,
    ),
    _issuer(
        "keys_refresh_seconds",
        Kind.FLOAT,
        "Time between two fetches of its keys; sooner if they say so themselves, or a token names an unknown key.",
        unit="s",
        default=3600.0,
        minimum=10,
        maximum=604_800,
    ),
    _issuer(
        "keys_max_age_seconds",
        Kind.FLOAT,
        "How long known keys are used while they cannot be fetched again.",
        unit="s",
        default=86_400.0,
        minimum=60,
        maximum=2_592_000,
    ),
    _issuer(
        "ca_file",
        Kind.TEXT,
        "PEM bundle of authorities that its certificate is checked against; in a file, relative to that file.",
        default_means="the system's",
        pattern=r"[^\x00]+",
        pattern_means="a path",
    ),
)

_BY_NAME = {setting.name: setting for setting in ISSUER_SETTINGS}

_PRESETS: Mapping[str, Mapping[str, str]] = {
    # Tokens for the older endpoint of Microsoft Entra ID; which one a resource gets is said by its application
    # manifest (`requestedAccessTokenVersion`), whatever endpoint the client used.
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
    """One issuer; each field is explained in `ISSUER_SETTINGS`. `jwks_url` is None where discovery tells it."""

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
        """What `aud` may be in a token for a service."""
        return frozenset(audience.replace(SERVICE_PLACEHOLDER, service) for audience in self.audience)

    def serves(self, service: str) -> bool:
        """Whether a service accepts its tokens."""
        return not self.services or service in self.services

    @property
    def discovery_url(self) -> str:
        """Where OpenID Connect Discovery 1.0 has an issuer publish its metadata."""
        return self.issuer.rstrip("/") + "/.well-known/openid-configuration"


OWN_AS_ISSUER = Issuer(
    name=OWN,
    issuer=OWN_ISSUER,
    audience=(_OWN_AUDIENCE,),
    jwks_url=None,
    algorithms=("ES256",),
    keys_refresh_seconds=60.0,  # a new key is published for longer than that before it signs
)
"""The router itself. Its keys come from its own store, never from an address."""


def own_audience(service: str) -> str:
    """The `aud` of tokens that the router issues for a service."""
    return _OWN_AUDIENCE.replace(SERVICE_PLACEHOLDER, service)


def parse_issuers(
    raw: object, locate: Callable[[tuple[str, ...]], str], *, resolve: Callable[[str], str] = str
) -> dict[str, Issuer]:
    """The issuers that a `token_issuers:` section describes, by name; None is an empty one.

    `locate` says where the value at a path within the section was written; `resolve` makes a path in it one that can be
    opened. Raises `SettingsError`.
    """
    if raw is None:
        return {}
    if not isinstance(raw, Mapping):
        raise SettingsError("token_issuers", None, "must be a mapping of names to issuers", locate(()))
    if len(raw) > MOST_ISSUERS:
        raise SettingsError("token_issuers", len(raw), f"must not be more than {MOST_ISSUERS} issuers", locate(()))
    issuers: dict[str, Issuer] = {}
    for name, mapping in raw.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise SettingsError("issuer name", name, _NAME_MEANS, locate((str(name),)))
        if name == OWN:
            raise SettingsError("issuer name", name, "is the router's own as an issuer", locate((name,)))
        issuers[name] = _Reader(name, mapping, locate, resolve).issuer()
    return issuers


@dataclass(frozen=True, slots=True)
class _Reader:
    name: str
    mapping: object
    locate: Callable[[tuple[str, ...]], str]
    resolve: Callable[[str], str]

    def issuer(self) -> Issuer:
        if not isinstance(self.mapping, Mapping):
            raise self._fault("issuer", None, "must be a mapping of setting names to values")
        given: dict[str, Any] = {}
        for name, raw in self.mapping.items():
            if name not in _BY_NAME:
                raise unknown_name(str(name), _BY_NAME, self._place(str(name)))
            given[name] = parse_value(_BY_NAME[name], raw, self._place(name))
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
                raise self._fault("tenant", tenant, "needs a preset")
            return {}
        if tenant is None:
            raise self._fault("preset", preset, "needs tenant, the directory's id")
        return {name: text.replace(_TENANT, tenant) for name, text in _PRESETS[preset].items()}

    def _check(self, values: Mapping[str, Any]) -> None:
        if values["issuer"] is None:
            raise self._fault("issuer", None, "must be given, or a preset")
        if values["issuer"] == OWN_ISSUER:
            raise self._fault("issuer", OWN_ISSUER, "is the router's own as an issuer")
        if not values["audience"]:
            raise self._fault("audience", None, "must be given: without it a token for anything else would do here")
        if not values["algorithms"]:
            raise self._fault("algorithms", None, "must not be empty")
        address = "issuer" if values["jwks_url"] is None else "jwks_url"
        if not is_safe_url(values[address]):
            allowed = "must be an https URL (http on loopback only)"
            if address == "issuer":
                allowed += ", as its keys are found by discovery there; or give jwks_url"
            raise self._fault(address, values[address], allowed)
        if values["keys_max_age_seconds"] < values["keys_refresh_seconds"]:
            allowed = f"must be at least keys_refresh_seconds ({values['keys_refresh_seconds']:g})"
            raise self._fault("keys_max_age_seconds", values["keys_max_age_seconds"], allowed)

    def _place(self, name: str = "") -> str:
        source = self.locate((self.name, name) if name else (self.name,))
        return (f"{source}: " if source else "") + f"token issuer {self.name}"

    def _fault(self, setting: str, value: object, allowed: str) -> SettingsError:
        return SettingsError(setting, value, allowed, self._place(setting))


def is_safe_url(url: str) -> bool:
    """Whether keys that come from there are the issuer's: over TLS, or from this machine. No user, no fragment."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return False
    if not parts.hostname or "@" in parts.netloc or parts.fragment or port == 0 or not url.isascii():
        return False
    return parts.scheme == "https" or (parts.scheme == "http" and _is_loopback(parts.hostname))


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
