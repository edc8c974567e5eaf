"""Certificates as they are mounted: read, judged, and replaced while the router runs.

Lives here: whether a pair of certificate and key is any good (`judge`, no I/O), and `Certificates`, which looks at the
files once a second and keeps the last good pair. Must not live here: how TLS is spoken (`tls`).

The files of a mounted Secret are links through one folder link, which is turned at once for all of them. Reading two
files takes two moments, so a pair is taken only if it was the same at two looks.
"""

from __future__ import annotations

import itertools
import logging
import ssl
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes, PublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID

from router.settings import RouterSettings
from router.telemetry.catalogue import Sample
from router.telemetry.log import event
from router.tls import Material, RenewableContext, peer_contexts, server_context
from router.values import SettingsError

_log = logging.getLogger("router.certificates")

_LOOK_SECONDS = 1.0
# One that was refused may become good without a change of its files: it may not have been valid yet.
_JUDGE_AGAIN_SECONDS = 60.0
_LARGEST_FILE_BYTES = 1_048_576
_SOON_SECONDS = 14 * 86400.0


@dataclass(frozen=True, slots=True)
class Files:
    """Where one use's certificate, key and authorities are, and the names of the settings that say so."""

    use: str
    certificate: tuple[str, str]
    key: tuple[str, str]
    authorities: tuple[str, str] | None

    @property
    def for_clients(self) -> bool:
        """Whether clients are shown it; else other pods."""
        return self.use == "server"


def server_files(settings: RouterSettings) -> Files | None:
    """Of the port for clients; None where HTTPS is off. Raises `SettingsError` for half a pair."""
    return _files(
        "server",
        ("tls_cert_file", settings.tls_cert_file),
        ("tls_key_file", settings.tls_key_file),
        ("tls_client_ca_file", settings.tls_client_ca_file),
    )


def peer_files(settings: RouterSettings) -> Files | None:
    """Of the port for other pods; None where none are mounted. Raises `SettingsError`."""
    authorities = ("peer_tls_ca_file", settings.peer_tls_ca_file)
    files = _files(
        "peer",
        ("peer_tls_cert_file", settings.peer_tls_cert_file),
        ("peer_tls_key_file", settings.peer_tls_key_file),
        authorities,
    )
    if files is not None and files.authorities is None:
        raise SettingsError(authorities[0], None, f"must be given together with {files.certificate[0]}")
    return files


_Named = tuple[str, str | None]


def _files(use: str, certificate: _Named, key: _Named, authorities: _Named) -> Files | None:
    (cert_name, cert), (key_name, key_path), (_, ca) = certificate, key, authorities
    if cert is not None and key_path is not None:
        return Files(use, (cert_name, cert), (key_name, key_path), (authorities[0], ca) if ca is not None else None)
    for (given_name, given), (other_name, other) in (
        (certificate, key),
        (key, certificate),
        (authorities, certificate),
    ):
        if given is not None and other is None:
            raise SettingsError(other_name, None, f"must be given together with {given_name}")
    return None


@dataclass(frozen=True, slots=True)
class Judged:
    """A pair that can be used."""

    material: Material
    subject: str
    names: tuple[str, ...]
    not_after: float  # seconds since the epoch; of whichever certificate of the chain ends first
    authorities_not_after: float | None  # the same of the authorities of the other side


def judge(files: Files, contents: Material, now: float) -> Judged:
    """Whether a pair can be used at `now` (seconds since the epoch). Raises `SettingsError`, which says what is wrong
    with which file, and nothing of a key."""
    name, path = files.certificate
    try:
        chain = x509.load_pem_x509_certificates(contents.chain)
    except ValueError:
        raise SettingsError(name, path, "must hold certificates in PEM, the router's own first") from None
    _judge_times(files, chain, now)
    _judge_key(files, chain, _private_key(files, contents.key))
    _judge_chain(files, chain)
    leaf = chain[0]
    if files.for_clients:
        _judge_purpose(files, leaf)
    authorities = _judge_authorities(files, contents.authorities) if contents.authorities is not None else ()
    try:
        if files.for_clients:
            server_context(contents)
        else:
            peer_contexts(contents)
    except (ssl.SSLError, ValueError) as error:
        reason = getattr(error, "reason", None) or type(error).__name__
        raise SettingsError(name, path, f"cannot be used with its key: {reason}") from None
    return Judged(
        contents,
        leaf.subject.rfc4514_string(),
        _names(leaf),
        min(_ends(chain)),
        min(_ends(authorities), default=None),
    )


def _ends(certificates: Sequence[x509.Certificate]) -> list[float]:
    return [certificate.not_valid_after_utc.timestamp() for certificate in certificates]


def _judge_times(files: Files, chain: Sequence[x509.Certificate], now: float) -> None:
    moment = datetime.fromtimestamp(now, UTC)
    for number, certificate in enumerate(chain, 1):
        which = "" if number == 1 else f"certificate {number} of the chain "
        if certificate.not_valid_after_utc < moment:
            fault = f"{which}expired at {certificate.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}"
        elif certificate.not_valid_before_utc > moment:
            fault = f"{which}is not valid before {certificate.not_valid_before_utc:%Y-%m-%dT%H:%M:%SZ}"
        else:
            continue
        raise SettingsError(*files.certificate, f"{fault}; must be valid now")


def _private_key(files: Files, pem: bytes) -> PrivateKeyTypes:
    try:
        return load_pem_private_key(pem, password=None)
    except TypeError:
        fault = "is protected by a passphrase; must be a private key in PEM without one"
    except (ValueError, UnsupportedAlgorithm):
        fault = "must hold one private key in PEM"
    raise SettingsError(*files.key, fault) from None


def _spki(key: PublicKeyTypes) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _judge_key(files: Files, chain: Sequence[x509.Certificate], key: PrivateKeyTypes) -> None:
    public = _spki(key.public_key())
    if _spki(chain[0].public_key()) == public:
        return
    for number, certificate in enumerate(chain[1:], 2):
        if _spki(certificate.public_key()) == public:
            fault = f"the key of {files.key[0]} belongs to certificate {number} of the chain; it must be the first"
            raise SettingsError(*files.certificate, fault)
    raise SettingsError(*files.key, f"is not the key of the certificate in {files.certificate[1]}; must belong to it")


def _judge_chain(files: Files, chain: Sequence[x509.Certificate]) -> None:
    for number, (certificate, issuer) in enumerate(itertools.pairwise(chain), 2):
        try:
            certificate.verify_directly_issued_by(issuer)
        except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
            fault = (
                f"certificate {number} ({issuer.subject.rfc4514_string()}) did not issue certificate {number - 1} "
                f"({certificate.subject.rfc4514_string()}); each must be followed by its issuer's"
            )
            raise SettingsError(*files.certificate, fault) from None


def _judge_purpose(files: Files, leaf: x509.Certificate) -> None:
    try:
        usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return
    except ValueError:
        raise SettingsError(*files.certificate, "has extensions that cannot be read; must be X.509 v3") from None
    if not {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE} & set(usage):
        raise SettingsError(*files.certificate, "is not for servers; its extended key usage must include serverAuth")


def _judge_authorities(files: Files, pem: bytes) -> Sequence[x509.Certificate]:
    try:
        pem.decode("ascii")
        return x509.load_pem_x509_certificates(pem)
    except ValueError:
        assert files.authorities is not None
        raise SettingsError(*files.authorities, "must hold certificates of authorities in PEM, and no else") from None


def _names(leaf: x509.Certificate) -> tuple[str, ...]:
    try:
        found = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return ()
    return tuple(str(name.value) for name in found)


def _read(files: Files) -> Material:
    """What the files hold now. Raises `SettingsError` for one that cannot be read."""
    wanted = (files.certificate, files.key, files.authorities)
    chain, key, authorities = (_read_file(*file) if file is not None else None for file in wanted)
    assert chain is not None
    assert key is not None
    return Material(chain, key, authorities)


def _read_file(name: str, path: str) -> bytes:
    try:
        with Path(path).open("rb") as file:
            data = file.read(_LARGEST_FILE_BYTES + 1)
    except OSError as error:
        raise SettingsError(name, path, f"cannot be read: {error.strerror}") from None
    if len(data) > _LARGEST_FILE_BYTES:
        raise SettingsError(name, path, f"must be at most {_LARGEST_FILE_BYTES} bytes")
    return data


class Certificates:
    """The certificate of one use: the one in force, and whoever is to replace it."""

    def __init__(self, files: Files, now: float) -> None:
        """Raises `SettingsError` when there is none that can be used at `now` (seconds since the epoch)."""
        self._files = files
        self._in_force = judge(files, _read(files), now)
        self._seen: Material | str = self._in_force.material  # contents, or why they cannot be read
        self._refused: Material | str | None = None
        self._why_refused = ""
        self._judge_again = 0.0
        self._look_again = 0.0
        self.errors = 0
        self._tell("certificate in force", now)

    @property
    def material(self) -> Material:
        """What is in force."""
        return self._in_force.material

    @property
    def not_after(self) -> float:
        """When the one in force ends: seconds since the epoch."""
        return self._in_force.not_after

    @property
    def last_reload_succeeded(self) -> bool:
        """Whether what the files hold is in force."""
        return self._refused is None

    def samples(self) -> Iterator[Sample]:
        """What a scrape tells; see `telemetry.catalogue`."""
        use = self._files.use
        yield Sample("certificate_expiry_timestamp_seconds", self.not_after, (use,))
        if (ends := self._in_force.authorities_not_after) is not None:
            authorities = "client-ca" if self._files.for_clients else "peer-ca"
            yield Sample("certificate_expiry_timestamp_seconds", ends, (authorities,))
        yield Sample("certificate_errors", self.errors, (use,))
        yield Sample("certificate_last_reload_success", self.last_reload_succeeded, (use,))

    def problems(self, now: float) -> Iterator[str]:
        """What an operator should see to, in a line each; `now` in seconds since the epoch."""
        if self._refused is not None:
            yield f"{self._files.use} certificate refused, the former one stays in force: {self._why_refused}"
        if (left := self.not_after - now) < _SOON_SECONDS:
            ends = f"{datetime.fromtimestamp(self.not_after, UTC):%Y-%m-%dT%H:%M:%SZ}"
            yield f"{self._files.use} certificate {'ends' if left > 0 else 'ended'} at {ends}"

    def look(self, now: float) -> Material | None:
        """Look at the files, at most once a second: another certificate that is in force from now on, or None."""
        if self._look_again - _LOOK_SECONDS <= now < self._look_again:  # unless the clock was set back
            return None
        self._look_again = now + _LOOK_SECONDS
        try:
            contents: Material | str = _read(self._files)
        except SettingsError as error:
            contents = str(error)
        seen_before, self._seen = self._seen, contents
        if contents != seen_before:
            return None  # whoever writes the files may not have finished
        if contents == self._in_force.material:
            if self._refused is not None:
                self._tell("certificate in force is that of the files again", now)
            self._refused = None
            return None
        if contents == self._refused and now < self._judge_again:
            return None
        return self._take(contents, now)

    def _take(self, contents: Material | str, now: float) -> Material | None:
        self._judge_again = now + _JUDGE_AGAIN_SECONDS
        try:
            if isinstance(contents, str):
                raise SettingsError(self._files.certificate[0], None, contents)
            self._in_force = judge(self._files, contents, now)
        except SettingsError as error:
            self._why_refused = contents if isinstance(contents, str) else str(error)
            if contents != self._refused:
                self.errors += 1
                event(
                    _log, logging.ERROR, "certificate refused, the former one stays in force", error=self._why_refused
                )
            self._refused = contents
            return None
        self._refused = None
        self._tell("new certificate in force", now)
        return contents

    def _tell(self, message: str, now: float) -> None:
        soon = self.not_after - now < _SOON_SECONDS
        event(
            _log, logging.WARNING if soon else logging.INFO, message, use=self._files.use,
            subject=self._in_force.subject, names=list(self._in_force.names),
            expires=f"{datetime.fromtimestamp(self.not_after, UTC):%Y-%m-%dT%H:%M:%SZ}",
        )  # fmt: skip


class PeerCertificates(Certificates):
    """That of the links between pods, and the contexts that go with it."""

    def __init__(self, files: Files, now: float) -> None:
        """Raises `SettingsError` when there is none that can be used at `now` (seconds since the epoch)."""
        super().__init__(files, now)
        accepting, dialling = peer_contexts(self.material)
        self.accepting = RenewableContext(accepting)
        self.dialling = RenewableContext(dialling)

    def look(self, now: float) -> Material | None:
        material = super().look(now)
        if material is not None:
            self.accepting.current, self.dialling.current = peer_contexts(material)
        return material
