"""Which TLS the links between routers use, by the settings."""

import time

import pytest

from router.config.router import load_settings
from router.config.schema import SettingsError
from router.peers.tls import PeerTls, peer_tls
from router.peers.tls_stream import LinkTls

NOW = time.time()


def tls(**settings: str) -> PeerTls:
    return peer_tls(load_settings(environ={}, file=settings), NOW)


@pytest.mark.parametrize(("peer_tls_setting", "required"), [("preferred", False), ("required", True)])
def test_links_use_a_self_signed_certificate_without_files(peer_tls_setting: str, required: bool) -> None:
    configured = tls(peer_tls=peer_tls_setting)
    assert configured.links.pinned is not None
    assert configured.links.pinned.required is required
    assert configured.mounted is None


def test_links_without_tls() -> None:
    assert tls(peer_tls="off") == PeerTls(LinkTls())


def test_invalid_setting_is_rejected() -> None:
    files = {"peer_tls_cert_file": "/c", "peer_tls_key_file": "/k", "peer_tls_ca_file": "/a"}
    with pytest.raises(SettingsError, match=r"^peer_tls = 'off': must be preferred or required .*'?/c"):
        tls(peer_tls="off", **files)
    with pytest.raises(SettingsError, match=r"peer_tls = 'some': must be one of off, preferred, required"):
        tls(peer_tls="some")
