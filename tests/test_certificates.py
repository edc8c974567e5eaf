"""Which certificates are refused and why, and how one takes another's place."""

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import trustme
from cryptography.x509.oid import ExtendedKeyUsageOID

from router.certificates import Certificates, Files, PeerCertificates, judge, peer_files, server_files
from router.peer_tls import PeerTls, peer_tls
from router.peers.encryption import LinkTls
from router.settings import load_settings
from router.tls import Material, peer_contexts
from router.values import SettingsError
from tests.certificates import Mount, issue, self_signed, with_passphrase

NOW = time.time()
HOUR = 3600.0
FILES = Files("server", ("tls_cert_file", "/tls/cert.pem"), ("tls_key_file", "/tls/key.pem"), None)
ROOT = trustme.CA(key_type=trustme.KeyType.ECDSA)
BETWEEN = ROOT.create_child_ca()
ONE = issue(ROOT)
OTHER = issue(ROOT)
LONG = issue(BETWEEN)
AUTHORITY = ROOT.cert_pem.bytes()


def split(chain: bytes) -> list[bytes]:
    return [b"-----BEGIN" + part for part in chain.split(b"-----BEGIN")[1:]]


def reordered(material: Material, *order: int) -> Material:
    parts = split(material.chain)
    return replace(material, chain=b"".join(parts[index] for index in order))


# What is judged.


def test_a_good_pair_tells_its_names_and_its_end() -> None:
    ends = int(NOW) + 40 * 24 * HOUR
    judged = judge(FILES, issue(ROOT, "fe.example.com", "127.0.0.1", ends=ends), NOW)
    assert judged.names == ("fe.example.com", "127.0.0.1")
    assert judged.not_after == ends


def test_a_chain_ends_with_the_first_of_its_certificates_to_end() -> None:
    assert len(split(LONG.chain)) == 2
    early = issue(BETWEEN, ends=int(NOW + HOUR))
    assert judge(FILES, early, NOW).not_after == int(NOW + HOUR)
    with_root = replace(LONG, chain=LONG.chain + AUTHORITY)
    assert judge(FILES, with_root, NOW).material is with_root


REFUSED: dict[str, tuple[Material, str]] = {
    "another's key": (replace(ONE, key=OTHER.key), "tls_key_file = '/tls/key.pem': is not the key of the certificate"),
    "passphrase": (
        replace(ONE, key=with_passphrase(ONE.key)),
        "tls_key_file = '/tls/key.pem': is protected by a passphrase",
    ),
    "expired": (issue(ROOT, ends=NOW - HOUR), "tls_cert_file = '/tls/cert.pem': expired at 2"),
    "not valid yet": (
        issue(ROOT, begins=NOW + HOUR, ends=NOW + 2 * HOUR),
        "tls_cert_file = '/tls/cert.pem': is not valid before 2",
    ),
    "no certificate": (replace(ONE, chain=b"hello"), "must hold certificates in PEM"),
    "empty": (replace(ONE, chain=b""), "must hold certificates in PEM"),
    "half a certificate": (replace(ONE, chain=ONE.chain[:300]), "must hold certificates in PEM"),
    "not ASCII": (replace(ONE, chain=b"\xff\x00" * 20), "must hold certificates in PEM"),
    "no key": (replace(ONE, key=b""), "must hold one private key in PEM"),
    "half a key": (replace(ONE, key=ONE.key[:100]), "must hold one private key in PEM"),
    "a certificate for a key": (replace(ONE, key=ONE.chain), "must hold one private key in PEM"),
    "the server's own is not first": (reordered(LONG, 1, 0), "belongs to certificate 2 of the chain; it must be the"),
    "another authority follows": (
        replace(ONE, chain=ONE.chain + trustme.CA().cert_pem.bytes()),
        "certificate 2 (OU=Testing CA",
    ),
    "the chain has a gap": (
        reordered(replace(LONG, chain=LONG.chain + AUTHORITY), 0, 2),
        "did not issue certificate 1",
    ),
    "a key that is too short": (self_signed(1024), "cannot be used with its key: EE_KEY_TOO_SMALL"),
    "for clients only": (self_signed(2048, purpose=ExtendedKeyUsageOID.CLIENT_AUTH), "must include serverAuth"),
}


@pytest.mark.parametrize(("pair", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_refused(pair: Material, reason: str) -> None:
    with pytest.raises(SettingsError) as caught:
        judge(FILES, pair, NOW)
    said = str(caught.value)
    assert reason in said
    assert said.startswith("tls_")
    assert "\n" not in said
    for line in pair.key.splitlines()[1:-1]:
        assert line.decode("latin-1") not in said


def test_an_expired_certificate_within_the_chain_is_named() -> None:
    with pytest.raises(SettingsError, match="certificate 2 of the chain expired at"):
        judge(FILES, replace(ONE, chain=ONE.chain + issue(ROOT, ends=NOW - HOUR).chain), NOW)


def test_authorities_of_clients_must_be_some() -> None:
    files = replace(FILES, authorities=("tls_client_ca_file", "/ca.pem"))
    judge(files, replace(ONE, authorities=AUTHORITY), NOW)
    for bad in (b"", b"hello", b"\xff"):
        with pytest.raises(SettingsError, match="tls_client_ca_file = '/ca\\.pem': must hold"):
            judge(files, replace(ONE, authorities=bad), NOW)


def test_nobody_shows_a_key_by_accident() -> None:
    assert "PRIVATE" not in f"{ONE!r} {ONE} {judge(FILES, ONE, NOW)!r}"


# Which settings.


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
def test_half_a_pair_of_settings_is_refused(given: dict[str, str], missing: str) -> None:
    settings = load_settings(environ={}, file=given)
    with pytest.raises(SettingsError, match=f"^{missing}: must be given together with"):
        (peer_files if "peer" in missing else server_files)(settings)


def test_without_files_there_is_no_tls() -> None:
    settings = load_settings(environ={})
    assert server_files(settings) is None
    assert peer_files(settings) is None


def test_links_between_routers_are_encrypted_by_files_else_as_the_setting_says() -> None:
    def tls(**given: str) -> PeerTls:
        return peer_tls(load_settings(environ={}, file=given), NOW)

    for word, required in (("preferred", False), ("required", True)):
        own = tls(peer_tls=word).links.agreed
        assert own is not None
        assert own.required is required
        assert tls(peer_tls=word).mounted is None
    assert tls(peer_tls="off") == PeerTls(LinkTls())
    files = {"peer_tls_cert_file": "/c", "peer_tls_key_file": "/k", "peer_tls_ca_file": "/a"}
    with pytest.raises(SettingsError, match=r"^peer_tls = 'off': must be preferred or required .*'?/c"):
        tls(peer_tls="off", **files)
    with pytest.raises(SettingsError, match=r"peer_tls = 'some': must be one of off, preferred, required"):
        tls(peer_tls="some")


# One in another's place.


@pytest.fixture
def mount(tmp_path: Path) -> Mount:
    return Mount(tmp_path / "tls", ONE)


def begin(mount: Mount, kind: Callable[[Files, float], Certificates] = Certificates) -> Certificates:
    files = Files("server", ("tls_cert_file", mount.certificate), ("tls_key_file", mount.key), None)
    return kind(files, NOW)


def test_a_new_pair_is_taken_when_it_is_the_same_at_two_looks(mount: Mount) -> None:
    certificates = begin(mount)
    assert certificates.look(NOW) is None
    mount.turn(OTHER)
    assert certificates.look(NOW + 0.5) is None  # too soon for a look
    assert certificates.look(NOW + 1) is None
    assert certificates.look(NOW + 2) == OTHER
    assert certificates.look(NOW + 3) is None
    assert certificates.material == OTHER
    assert (certificates.errors, certificates.last_reload_succeeded) == (0, True)


def test_a_bad_pair_is_refused_once_and_the_former_one_stays(mount: Mount, caplog: pytest.LogCaptureFixture) -> None:
    certificates = begin(mount)
    mount.turn(replace(OTHER, key=ONE.key))
    with caplog.at_level(logging.ERROR, "router.certificates"):
        assert [certificates.look(NOW + second) for second in range(1, 200)] == [None] * 199
    (record,) = caplog.records
    assert record.message == "certificate refused, the former one stays in force"
    assert "tls_key_file" in record.fields["error"]  # type: ignore[attr-defined]
    assert certificates.material == ONE
    assert (certificates.errors, certificates.last_reload_succeeded) == (1, False)
    (problem,) = certificates.problems(NOW + 199)
    assert problem.startswith("server certificate refused, the former one stays in force: tls_key_file")
    mount.turn(OTHER)
    assert [certificates.look(NOW + second) for second in (201, 202)] == [None, OTHER]
    assert certificates.last_reload_succeeded
    assert list(certificates.problems(NOW + 203)) == []


def test_one_that_ends_soon_is_a_problem(mount: Mount) -> None:
    certificates = begin(mount)
    end = certificates.not_after
    assert list(certificates.problems(end - 15 * 86400)) == []
    (soon,) = certificates.problems(end - 13 * 86400)
    assert soon.startswith("server certificate ends at ")
    (late,) = certificates.problems(end + 1)
    assert late.startswith("server certificate ended at ")


def test_a_pair_that_comes_back_is_in_force_as_it_was(mount: Mount, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "router.certificates")
    certificates = begin(mount)
    mount.turn(replace(ONE, chain=b"hello"))
    assert [certificates.look(NOW + second) for second in (1, 2)] == [None, None]
    assert not certificates.last_reload_succeeded
    mount.turn(ONE)
    assert [certificates.look(NOW + second) for second in (3, 4)] == [None, None]
    assert certificates.last_reload_succeeded
    assert caplog.records[-1].message == "certificate in force is that of the files again"


def test_files_that_are_gone_leave_the_former_one(mount: Mount) -> None:
    certificates = begin(mount)
    (mount.folder / "..data").unlink()
    assert [certificates.look(NOW + second) for second in range(1, 100)] == [None] * 99
    assert (certificates.errors, certificates.material) == (1, ONE)
    with pytest.raises(SettingsError, match=r"tls_cert_file = '\S+/cert.pem': cannot be read: No such file"):
        begin(mount)


def test_a_pair_that_was_not_valid_yet_is_taken_when_it_is(mount: Mount) -> None:
    certificates = begin(mount)
    later = issue(ROOT, begins=NOW + 90, ends=NOW + 2 * HOUR)
    mount.turn(later)
    taken = [second for second in range(1, 200) if certificates.look(NOW + second) is not None]
    assert len(taken) == 1
    assert 90 <= taken[0] <= 151


def test_a_clock_set_back_does_not_stop_the_looks(mount: Mount) -> None:
    certificates = begin(mount)
    assert certificates.look(NOW + 1000) is None
    mount.turn(OTHER)
    assert [certificates.look(NOW + second) for second in (1, 2)] == [None, OTHER]


def test_a_file_without_end_is_refused(mount: Mount) -> None:
    (mount.folder / "cert.pem").unlink()
    (mount.folder / "cert.pem").symlink_to("/dev/zero")
    with pytest.raises(SettingsError, match=r"tls_cert_file = .* must be at most 1048576 bytes"):
        begin(mount)


def test_contexts_of_peers_follow_their_certificate(tmp_path: Path) -> None:
    mount = Mount(tmp_path / "peers", ONE)
    (tmp_path / "ca.pem").write_bytes(AUTHORITY)
    files = Files("peer", ("c", mount.certificate), ("k", mount.key), ("a", str(tmp_path / "ca.pem")))
    certificates = PeerCertificates(files, NOW)
    before = certificates.accepting.current, certificates.dialling.current
    mount.turn(OTHER)
    certificates.look(NOW + 1)
    material = certificates.look(NOW + 2)
    assert material is not None
    after = certificates.accepting.current, certificates.dialling.current
    assert before[0] is not after[0]
    assert before[1] is not after[1]
    peer_contexts(material)
