"""Validation of certificates, and the settings that name their files."""

import contextlib
import datetime
import ssl
import time
from dataclasses import replace

import pytest
import trustme
from cryptography.x509.oid import ExtendedKeyUsageOID

from router.config.router import load_settings
from router.config.schema import SettingsError
from router.net.certificate_files import (
    CertificateFiles,
    SettingPath,
    peer_certificate_files,
    server_certificate_files,
)
from router.net.certificates import validate_pair
from router.net.tls import CertificatePair, ReloadableContext, server_context
from tests.certificates import issue, self_signed, with_passphrase

NOW = time.time()
HOUR = 3600.0
FILES = CertificateFiles(
    "server", SettingPath("tls_cert_file", "/tls/cert.pem"), SettingPath("tls_key_file", "/tls/key.pem"), None
)
ROOT = trustme.CA(key_type=trustme.KeyType.ECDSA)
INTERMEDIATE = ROOT.create_child_ca()
ONE = issue(ROOT)
OTHER = issue(ROOT)
WITH_INTERMEDIATE = issue(INTERMEDIATE)
LONG = issue(INTERMEDIATE.create_child_ca())
FOREIGN = trustme.CA(key_type=trustme.KeyType.ECDSA)
AUTHORITY = ROOT.cert_pem.bytes()


def split(chain: bytes) -> list[bytes]:
    return [b"-----BEGIN" + part for part in chain.split(b"-----BEGIN")[1:]]


def reordered(pair: CertificatePair, *order: int) -> CertificatePair:
    certificates = split(pair.chain)
    return replace(pair, chain=b"".join(certificates[index] for index in order))


# Validation.


def test_valid_pair_has_its_names_and_expiry() -> None:
    not_after = int(NOW) + 40 * 24 * HOUR
    validated = validate_pair(FILES, issue(ROOT, "fe.example.com", "127.0.0.1", not_after=not_after), NOW)
    assert validated.names == ("fe.example.com", "127.0.0.1")
    assert validated.not_after == not_after


def test_chain_expires_with_its_first_certificate_to_expire() -> None:
    assert len(split(WITH_INTERMEDIATE.chain)) == 2
    early = issue(INTERMEDIATE, not_after=int(NOW + HOUR))
    assert validate_pair(FILES, early, NOW).not_after == int(NOW + HOUR)
    with_root = replace(WITH_INTERMEDIATE, chain=WITH_INTERMEDIATE.chain + AUTHORITY)
    assert validate_pair(FILES, with_root, NOW).pair is with_root


INVALID: dict[str, tuple[CertificatePair, str]] = {
    "key of another certificate": (
        replace(ONE, key=OTHER.key),
        "tls_key_file = '/tls/key.pem': is not the key of the certificate",
    ),
    "passphrase": (
        replace(ONE, key=with_passphrase(ONE.key)),
        "tls_key_file = '/tls/key.pem': is protected by a passphrase",
    ),
    "expired": (issue(ROOT, not_after=NOW - HOUR), "tls_cert_file = '/tls/cert.pem': expired at 2"),
    "not valid yet": (
        issue(ROOT, not_before=NOW + HOUR, not_after=NOW + 2 * HOUR),
        "tls_cert_file = '/tls/cert.pem': is not valid before 2",
    ),
    "no certificate": (replace(ONE, chain=b"hello"), "must contain certificates in PEM"),
    "empty": (replace(ONE, chain=b""), "must contain certificates in PEM"),
    "half a certificate": (replace(ONE, chain=ONE.chain[:300]), "must contain certificates in PEM"),
    "not ASCII": (replace(ONE, chain=b"\xff\x00" * 20), "must contain certificates in PEM"),
    "no key": (replace(ONE, key=b""), "must contain one private key in PEM"),
    "half a key": (replace(ONE, key=ONE.key[:100]), "must contain one private key in PEM"),
    "certificate instead of a key": (replace(ONE, key=ONE.chain), "must contain one private key in PEM"),
    "unrelated authority in the chain": (
        replace(ONE, chain=ONE.chain + trustme.CA().cert_pem.bytes()),
        "certificate 2 (OU=Testing CA",
    ),
    "gap in the chain": (
        reordered(replace(WITH_INTERMEDIATE, chain=WITH_INTERMEDIATE.chain + AUTHORITY), 0, 2),
        "did not issue certificate 1",
    ),
    "gap above an intermediate": (
        reordered(replace(LONG, chain=LONG.chain + AUTHORITY), 0, 1, 3),
        "certificate 3 (OU=Testing CA",
    ),
    "missing intermediate, and that of another certificate": (
        replace(ONE, chain=ONE.chain + split(issue(FOREIGN.create_child_ca()).chain)[1]),
        "did not issue certificate 1",
    ),
    "short key": (self_signed(1024), "cannot be used with its key: EE_KEY_TOO_SMALL"),
    "for clients only": (self_signed(2048, purpose=ExtendedKeyUsageOID.CLIENT_AUTH), "must include serverAuth"),
}


@pytest.mark.parametrize(("pair", "reason"), INVALID.values(), ids=INVALID.keys())
def test_invalid_pair_is_rejected(pair: CertificatePair, reason: str) -> None:
    with pytest.raises(SettingsError) as caught:
        validate_pair(FILES, pair, NOW)
    error = str(caught.value)
    assert reason in error
    assert error.startswith("tls_")
    assert "\n" not in error
    for line in pair.key.splitlines()[1:-1]:
        assert line.decode("latin-1") not in error


def test_expired_certificate_within_the_chain_is_reported() -> None:
    after_the_authority = datetime.datetime(3200, 1, 1, tzinfo=datetime.UTC).timestamp()
    with pytest.raises(SettingsError, match="certificate 2 of the chain expired at"):
        validate_pair(FILES, issue(INTERMEDIATE, not_after=after_the_authority + HOUR), after_the_authority)


FULL = [*split(LONG.chain), AUTHORITY]
FOREIGN_CA = FOREIGN.cert_pem.bytes()
CORRECTED: dict[str, tuple[list[bytes], list[bytes], str]] = {
    "reversed": (FULL[::-1], FULL, "put in order"),
    "reversed without the root": (FULL[2::-1], FULL[:3], "put in order"),
    "intermediates exchanged": ([FULL[0], FULL[2], FULL[1]], FULL[:3], "put in order"),
    "root first": ([FULL[3], *FULL[:3]], FULL, "put in order"),
    "own certificate twice": ([FULL[0], *FULL], FULL, "without duplicates"),
    "intermediate twice": ([*FULL[:3], FULL[1]], FULL[:3], "without duplicates"),
    "foreign authority after the root": ([*FULL, FOREIGN_CA], FULL, "without OU=Testing CA"),
    "foreign authority first": ([FOREIGN_CA, *FULL], FULL, "without OU=Testing CA"),
    "previous certificate": ([issue(ROOT, not_after=NOW - HOUR).chain, ONE.chain], [ONE.chain], "without "),
    "all at once": ([FOREIGN_CA, *FULL[::-1], FULL[2]], FULL, "put in order, without duplicates, without OU="),
}


@pytest.mark.parametrize(("given", "expected", "correction"), CORRECTED.values(), ids=CORRECTED.keys())
def test_chain_is_put_in_order(given: list[bytes], expected: list[bytes], correction: str) -> None:
    key = ONE.key if expected == [ONE.chain] else LONG.key
    validated = validate_pair(FILES, CertificatePair(b"".join(given), key), NOW)
    assert split(validated.pair.chain) == expected
    assert validated.pair.key == key
    assert validated.correction.startswith(correction)


@pytest.mark.parametrize("chain", [FULL, FULL[:3]], ids=["with the root", "without the root"])
def test_chain_in_order_is_kept_as_it_is(chain: list[bytes]) -> None:
    pair = CertificatePair(b"".join(chain), LONG.key)
    validated = validate_pair(FILES, pair, NOW)
    assert validated.pair is pair
    assert validated.correction == ""


def test_corrected_chain_is_accepted_by_a_client_with_the_root() -> None:
    """The client is OpenSSL with TLS 1.2, whose strict order is what the correction is for."""
    validated = validate_pair(FILES, CertificatePair(b"".join([FOREIGN_CA, *FULL[::-1]]), LONG.key), NOW)
    client_context = ssl.create_default_context(cadata=AUTHORITY.decode())
    client_context.check_hostname = False
    client_context.maximum_version = ssl.TLSVersion.TLSv1_2
    outgoing, incoming = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = ReloadableContext(server_context(validated.pair)).wrap_bio(outgoing, incoming, server_side=True)
    client = client_context.wrap_bio(incoming, outgoing)
    for side in (client, server) * 3:
        with contextlib.suppress(ssl.SSLWantReadError):
            side.do_handshake()
    assert client.version() is not None
    assert client.getpeercert(binary_form=True) == ssl.PEM_cert_to_DER_cert(FULL[0].decode())


def test_authorities_of_clients_must_be_certificates() -> None:
    files = replace(FILES, authorities=SettingPath("tls_client_ca_file", "/ca.pem"))
    validate_pair(files, replace(ONE, authorities=AUTHORITY), NOW)
    for invalid in (b"", b"hello", b"\xff"):
        with pytest.raises(SettingsError, match="tls_client_ca_file = '/ca\\.pem': must contain"):
            validate_pair(files, replace(ONE, authorities=invalid), NOW)


def test_repr_contains_no_private_key() -> None:
    assert "PRIVATE" not in f"{ONE!r} {ONE} {validate_pair(FILES, ONE, NOW)!r}"


# Settings.


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        ({"tls_cert_file": "a"}, "tls_key_file"),
        ({"tls_key_file": "a"}, "tls_cert_file"),
        ({"tls_client_ca_file": "a"}, "tls_cert_file"),
        ({"peer_tls_cert_file": "a"}, "peer_tls_key_file"),
        ({"peer_tls_cert_file": "a", "peer_tls_key_file": "b"}, "peer_tls_ca_file"),
        ({"peer_tls_ca_file": "a"}, "peer_tls_cert_file"),
    ],
)
def test_incomplete_settings_are_rejected(given: dict[str, str], missing: str) -> None:
    settings = load_settings(environ={}, file=given)
    with pytest.raises(SettingsError, match=f"^{missing}: must be given together with"):
        (peer_certificate_files if "peer" in missing else server_certificate_files)(settings)


def test_there_are_no_files_by_default() -> None:
    settings = load_settings(environ={})
    assert server_certificate_files(settings) is None
    assert peer_certificate_files(settings) is None
