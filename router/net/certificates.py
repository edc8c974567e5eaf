"""Validation of a certificate with its key. No I/O.

Does not contain: the order of a chain (`certificate_chain`), reading and replacing certificates
(`certificate_reloader`), and TLS contexts (`tls`).
"""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID

from router.config.schema import SettingsError
from router.net.certificate_chain import ordered_chain
from router.net.certificate_files import CertificateFiles
from router.net.tls import CertificatePair, peer_contexts, server_context


@dataclass(frozen=True, slots=True)
class ValidatedPair:
    """A pair that can be used. Times are seconds since the epoch."""

    pair: CertificatePair
    """The pair of the files, with the chain in order."""
    correction: str
    """What was changed in the chain; "" if it is that of the file."""
    subject: str
    names: tuple[str, ...]
    not_after: float
    """The earliest expiry of the certificates in the chain."""
    authorities_not_after: float | None
    """The earliest expiry of the authorities; None without authorities."""


def validate_pair(files: CertificateFiles, pair: CertificatePair, now: float) -> ValidatedPair:
    """Check that a pair can be used at `now` (seconds since the epoch).

    Raises `SettingsError`. Its text names the file and the reason, and contains no part of a key.
    """
    try:
        given = x509.load_pem_x509_certificates(pair.chain)
    except ValueError:
        raise SettingsError(*files.certificate, "must contain certificates in PEM, the router's own first") from None
    key = _load_private_key(files, pair.key)
    chain, correction = ordered_chain(files, given, key, now)
    _check_validity_period(files, chain, now)
    leaf = chain[0]
    if correction:
        pair = replace(pair, chain=b"".join(certificate.public_bytes(Encoding.PEM) for certificate in chain))
    if files.for_clients:
        _check_purpose(files, leaf)
    authorities = _load_authorities(files, pair.authorities) if pair.authorities is not None else ()
    try:
        if files.for_clients:
            server_context(pair)
        else:
            peer_contexts(pair)
    except (ssl.SSLError, ValueError) as error:
        reason = getattr(error, "reason", None) or type(error).__name__
        raise SettingsError(*files.certificate, f"cannot be used with its key: {reason}") from None
    return ValidatedPair(
        pair,
        correction,
        leaf.subject.rfc4514_string(),
        _alternative_names(leaf),
        min(_expiry_times(chain)),
        min(_expiry_times(authorities), default=None),
    )


def _expiry_times(certificates: Sequence[x509.Certificate]) -> list[float]:
    return [certificate.not_valid_after_utc.timestamp() for certificate in certificates]


def _check_validity_period(files: CertificateFiles, chain: Sequence[x509.Certificate], now: float) -> None:
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


def _load_private_key(files: CertificateFiles, pem: bytes) -> PrivateKeyTypes:
    try:
        return load_pem_private_key(pem, password=None)
    except TypeError:
        fault = "is protected by a passphrase; must be a private key in PEM without one"
    except (ValueError, UnsupportedAlgorithm):
        fault = "must contain one private key in PEM"
    raise SettingsError(*files.key, fault) from None


def _check_purpose(files: CertificateFiles, leaf: x509.Certificate) -> None:
    try:
        usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return
    except ValueError:
        raise SettingsError(*files.certificate, "has extensions that cannot be read; must be X.509 v3") from None
    if not {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE} & set(usage):
        raise SettingsError(*files.certificate, "is not for servers; its extended key usage must include serverAuth")


def _load_authorities(files: CertificateFiles, pem: bytes) -> Sequence[x509.Certificate]:
    try:
        pem.decode("ascii")
        return x509.load_pem_x509_certificates(pem)
    except ValueError:
        assert files.authorities is not None
        raise SettingsError(
            *files.authorities, "must contain certificates of authorities in PEM, and nothing else"
        ) from None


def _alternative_names(leaf: x509.Certificate) -> tuple[str, ...]:
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return ()
    return tuple(str(name.value) for name in names)
