"""Puts the certificates of a file in order: the router's own first, each followed by its issuer's. No I/O.

TLS 1.2 requires this order (RFC 5246, section 7.4.2). Not every client accepts another one.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes, PublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from router.config.schema import SettingsError
from router.net.certificate_files import CertificateFiles

Chain = Sequence[x509.Certificate]


def ordered_chain(files: CertificateFiles, given: Chain, key: PrivateKeyTypes, now: float) -> tuple[Chain, str]:
    """Return the chain that clients should get, and what was changed; "" if it is the given one.

    `given` has the certificates in the order of the file, and `now` is in seconds since the epoch. Raises
    `SettingsError` if no certificate belongs to the key, or if clients could not verify the chain because an issuer's
    certificate is missing: then the file has an authority that issued none of the others.
    """
    moment = datetime.fromtimestamp(now, UTC)
    # Of certificates that fit equally, one that is valid now comes first.
    candidates = sorted(dict.fromkeys(given), key=lambda each: not _is_valid_at(each, moment))
    public = _public_key_bytes(key.public_key())
    own = next((each for each in candidates if _public_key_bytes(each.public_key()) == public), None)
    if own is None:
        fault = f"is not the key of the certificate in {files.certificate.path}; must belong to it"
        raise SettingsError(*files.key, fault)
    chain = [own]
    while issuer := next((each for each in candidates if each not in chain and _issued(each, chain[-1])), None):
        chain.append(issuer)
    if chain == list(given):
        return given, ""
    unused = [each for each in candidates if each not in chain]
    _check_complete(files, given, chain, unused)
    changes = ["put in order"] if chain != [each for each in dict.fromkeys(given) if each in chain] else []
    if len(candidates) < len(given):
        changes.append("without duplicates")
    changes += [f"without {each.subject.rfc4514_string()}, which issued none of the others" for each in unused]
    return chain, ", ".join(changes)


def _check_complete(files: CertificateFiles, given: Chain, chain: Chain, unused: Chain) -> None:
    """Raise `SettingsError` if an unused authority shows that the chain is incomplete.

    The last certificate of a chain is self-signed, or issued by an authority that clients have. A self-signed authority
    that issued none of the chain is one that clients are expected to have: so the certificates between are missing. The
    same holds for any authority if the router's own certificate has no issuer in the file.
    """
    last = chain[-1]
    if _issued(last, last):
        return
    for stray in unused:
        if _is_authority(stray) and (len(chain) == 1 or _issued(stray, stray)):
            fault = (
                f"certificate {given.index(stray) + 1} ({stray.subject.rfc4514_string()}) did not issue certificate "
                f"{given.index(last) + 1} ({last.subject.rfc4514_string()}), and that of its issuer "
                f"({last.issuer.rfc4514_string()}) is missing"
            )
            raise SettingsError(*files.certificate, fault)


def _issued(issuer: x509.Certificate, certificate: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (x509.ExtensionNotFound, ValueError):
        return _issued(certificate, certificate)


def _is_valid_at(certificate: x509.Certificate, moment: datetime) -> bool:
    return certificate.not_valid_before_utc <= moment <= certificate.not_valid_after_utc


def _public_key_bytes(key: PublicKeyTypes) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
