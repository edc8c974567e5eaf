"""Replacement of a mounted certificate while the router runs."""

import logging
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
import trustme

from router.config.schema import SettingsError
from router.net.certificate_files import CertificateFiles, SettingPath
from router.net.certificate_reloader import CertificateReloader, PeerCertificateReloader
from router.net.tls import CertificatePair, peer_contexts
from tests.certificates import SecretMount, issue

NOW = time.time()
HOUR = 3600.0
AUTHORITY = trustme.CA(key_type=trustme.KeyType.ECDSA)
ONE = issue(AUTHORITY)
OTHER = issue(AUTHORITY)


@pytest.fixture
def mount(tmp_path: Path) -> SecretMount:
    return SecretMount(tmp_path / "tls", ONE)


def files_of(mount: SecretMount) -> CertificateFiles:
    return CertificateFiles(
        "server", SettingPath("tls_cert_file", mount.certificate), SettingPath("tls_key_file", mount.key), None
    )


def new_reloader(mount: SecretMount) -> CertificateReloader:
    return CertificateReloader(files_of(mount), NOW)


def poll_seconds(reloader: CertificateReloader, *seconds: int) -> list[CertificatePair | None]:
    """Poll at these seconds after NOW; return the results."""
    return [reloader.poll(NOW + second) for second in seconds]


def test_new_pair_is_used_after_two_equal_reads(mount: SecretMount) -> None:
    reloader = new_reloader(mount)
    assert reloader.poll(NOW) is None
    mount.update(OTHER)
    assert reloader.poll(NOW + 0.5) is None  # less than a second after the last poll
    assert poll_seconds(reloader, 1, 2, 3) == [None, OTHER, None]
    assert reloader.pair == OTHER
    assert (reloader.errors, reloader.last_reload_succeeded) == (0, True)


def test_invalid_pair_is_rejected_once_and_the_previous_one_stays(
    mount: SecretMount, caplog: pytest.LogCaptureFixture
) -> None:
    reloader = new_reloader(mount)
    mount.update(replace(OTHER, key=ONE.key))
    with caplog.at_level(logging.ERROR, "router.net"):
        assert poll_seconds(reloader, *range(1, 200)) == [None] * 199
    (record,) = caplog.records
    assert record.message == "certificate rejected, the previous one stays in use"
    assert "tls_key_file" in record.fields["error"]  # type: ignore[attr-defined]
    assert reloader.pair == ONE
    assert (reloader.errors, reloader.last_reload_succeeded) == (1, False)
    (problem,) = reloader.problems(NOW + 199)
    assert problem.startswith("server certificate rejected, the previous one stays in use: tls_key_file")
    mount.update(OTHER)
    assert poll_seconds(reloader, 201, 202) == [None, OTHER]
    assert reloader.last_reload_succeeded
    assert list(reloader.problems(NOW + 203)) == []


def test_certificate_that_expires_soon_is_a_problem(mount: SecretMount) -> None:
    reloader = new_reloader(mount)
    expiry = reloader.not_after
    assert expiry is not None
    assert list(reloader.problems(expiry - 15 * 86400)) == []
    (soon,) = reloader.problems(expiry - 13 * 86400)
    assert soon.startswith("server certificate expires at ")
    (late,) = reloader.problems(expiry + 1)
    assert late.startswith("server certificate expired at ")


def test_restored_pair_ends_the_rejection(mount: SecretMount, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "router.net")
    reloader = new_reloader(mount)
    mount.update(replace(ONE, chain=b"hello"))
    assert poll_seconds(reloader, 1, 2) == [None, None]
    assert not reloader.last_reload_succeeded
    mount.update(ONE)
    assert poll_seconds(reloader, 3, 4) == [None, None]
    assert reloader.last_reload_succeeded
    assert caplog.records[-1].message == "certificate in the files is the one in use again"


def test_previous_pair_stays_when_the_files_are_removed(mount: SecretMount) -> None:
    reloader = new_reloader(mount)
    (mount.directory / "..data").unlink()
    assert poll_seconds(reloader, *range(1, 100)) == [None] * 99
    assert (reloader.errors, reloader.pair) == (1, ONE)
    with pytest.raises(SettingsError, match=r"tls_cert_file = '\S+/cert.pem': cannot be read: No such file"):
        new_reloader(mount)


@pytest.mark.parametrize("name", ["cert.pem", "key.pem"])
def test_named_pipe_is_rejected(tmp_path: Path, name: str) -> None:
    paths = {file: tmp_path / file for file in ("cert.pem", "key.pem")}
    paths["cert.pem"].write_bytes(ONE.chain)
    paths["key.pem"].write_bytes(ONE.key)
    files = CertificateFiles(
        "server",
        SettingPath("tls_cert_file", str(paths["cert.pem"])),
        SettingPath("tls_key_file", str(paths["key.pem"])),
        None,
    )
    reloader = CertificateReloader(files, NOW)
    paths[name].unlink()
    os.mkfifo(paths[name])
    assert poll_seconds(reloader, 1, 2, 3) == [None] * 3
    assert not reloader.last_reload_succeeded
    assert "cannot be read: Not a regular file" in next(reloader.problems(NOW))


def test_pair_that_is_not_valid_yet_is_used_once_it_is(mount: SecretMount) -> None:
    reloader = new_reloader(mount)
    mount.update(issue(AUTHORITY, not_before=NOW + 90, not_after=NOW + 2 * HOUR))
    used_at = [second for second in range(1, 200) if reloader.poll(NOW + second) is not None]
    assert len(used_at) == 1
    assert 90 <= used_at[0] <= 151


def test_polling_continues_when_the_clock_is_set_back(mount: SecretMount) -> None:
    reloader = new_reloader(mount)
    assert reloader.poll(NOW + 1000) is None
    mount.update(OTHER)
    assert poll_seconds(reloader, 1, 2) == [None, OTHER]


def test_endless_and_large_files_are_rejected(mount: SecretMount) -> None:
    certificate = mount.directory / "cert.pem"
    certificate.unlink()
    certificate.symlink_to("/dev/zero")
    with pytest.raises(SettingsError, match=r"tls_cert_file = .* Not a regular file"):
        new_reloader(mount)
    certificate.unlink()
    certificate.write_bytes(b" " * 1_048_577)
    with pytest.raises(SettingsError, match=r"tls_cert_file = .* must be at most 1048576 bytes"):
        new_reloader(mount)


def test_router_in_a_pod_waits_for_a_usable_pair(mount: SecretMount, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "router.net")
    mount.update(replace(OTHER, key=ONE.key))
    reloader = CertificateReloader(files_of(mount), NOW, may_wait=True)
    assert (reloader.pair, reloader.not_after, reloader.errors) == (None, None, 1)
    (condition,) = reloader.unmet_conditions()
    assert condition.startswith("no usable server certificate: tls_key_file")
    assert list(reloader.problems(NOW)) == [condition]
    assert {sample.metric for sample in reloader.samples()} == {"certificate_errors", "certificate_last_reload_success"}
    assert poll_seconds(reloader, *range(1, 100)) == [None] * 99
    mount.update(replace(OTHER, key=b""))
    poll_seconds(reloader, 101, 102)
    (condition,) = reloader.unmet_conditions()
    assert "must contain one private key in PEM" in condition
    mount.update(OTHER)
    assert poll_seconds(reloader, 103, 104) == [None, OTHER]
    assert list(reloader.unmet_conditions()) == list(reloader.problems(NOW)) == []
    assert [record.message for record in caplog.records] == ["certificate rejected"] * 2 + ["certificate in use"]


def test_router_in_a_pod_waits_for_its_files(mount: SecretMount) -> None:
    (mount.directory / "..data").unlink()
    reloader = CertificateReloader(files_of(mount), NOW, may_wait=True)
    (condition,) = reloader.unmet_conditions()
    assert "cert.pem': cannot be read: No such file" in condition
    mount.update(ONE)
    assert poll_seconds(reloader, 1, 2) == [None, ONE]


def test_pair_that_becomes_valid_is_used_after_a_start_without_one(mount: SecretMount) -> None:
    mount.update(issue(AUTHORITY, not_before=NOW + 90, not_after=NOW + 2 * HOUR))
    reloader = CertificateReloader(files_of(mount), NOW, may_wait=True)
    used_at = [second for second in range(1, 200) if reloader.poll(NOW + second) is not None]
    assert len(used_at) == 1
    assert 90 <= used_at[0] <= 151


def test_corrected_chain_is_a_problem_until_the_file_is_corrected(
    mount: SecretMount, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "router.net")
    twice = replace(OTHER, chain=OTHER.chain * 2)
    mount.update(twice)
    reloader = new_reloader(mount)
    assert reloader.pair is not None
    assert reloader.pair.chain.count(b"BEGIN") == 1
    assert caplog.records[-1].levelname == "WARNING"
    (problem,) = reloader.problems(NOW)
    assert problem.endswith("cert.pem without duplicates")
    assert list(reloader.unmet_conditions()) == []
    assert poll_seconds(reloader, *range(1, 100)) == [None] * 99
    mount.update(ONE)
    assert poll_seconds(reloader, 101, 102) == [None, ONE]
    mount.update(twice)
    poll_seconds(reloader, 103, 104)
    assert reloader.pair.chain.count(b"BEGIN") == 1
    mount.update(OTHER)
    assert poll_seconds(reloader, 105, 106) == [None, OTHER]
    assert list(reloader.problems(NOW)) == []


def test_contexts_of_peers_follow_their_certificate(tmp_path: Path) -> None:
    mount = SecretMount(tmp_path / "peers", ONE)
    ca_file = tmp_path / "ca.pem"
    AUTHORITY.cert_pem.write_to_path(ca_file)
    files = CertificateFiles(
        "peer", SettingPath("c", mount.certificate), SettingPath("k", mount.key), SettingPath("a", str(ca_file))
    )
    mount.update(replace(ONE, key=OTHER.key))
    reloader = PeerCertificateReloader(files, NOW, may_wait=True)
    mount.update(ONE)
    assert poll_seconds(reloader, -2, -1) == [None, replace(ONE, authorities=AUTHORITY.cert_pem.bytes())]
    before = reloader.server_context.current, reloader.client_context.current
    mount.update(OTHER)
    reloader.poll(NOW + 1)
    pair = reloader.poll(NOW + 2)
    assert pair is not None
    after = reloader.server_context.current, reloader.client_context.current
    assert before[0] is not after[0]
    assert before[1] is not after[1]
    peer_contexts(pair)
