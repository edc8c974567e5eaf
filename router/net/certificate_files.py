"""The files of certificates, as named by the settings. No I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from router.config.router import RouterSettings
from router.config.schema import SettingsError


class SettingPath(NamedTuple):
    """The path of a file, and the setting that contains this path."""

    setting: str
    path: str


@dataclass(frozen=True, slots=True)
class CertificateFiles:
    """The files of a certificate, its key, and the authorities of the other side's certificate.

    `use` is "server" or "peer".
    """

    use: str
    certificate: SettingPath
    key: SettingPath
    authorities: SettingPath | None

    @property
    def for_clients(self) -> bool:
        """True if the certificate is for connections of clients, False if it is for links between pods."""
        return self.use == "server"


def server_certificate_files(settings: RouterSettings) -> CertificateFiles | None:
    """Return the files for connections of clients, or None if HTTPS is off.

    Raises `SettingsError` if only one of certificate and key is set.
    """
    return _certificate_files(
        "server",
        ("tls_cert_file", settings.tls_cert_file),
        ("tls_key_file", settings.tls_key_file),
        ("tls_client_ca_file", settings.tls_client_ca_file),
    )


def peer_certificate_files(settings: RouterSettings) -> CertificateFiles | None:
    """Return the files for links between pods, or None if no files are set.

    Raises `SettingsError` if only some of certificate, key and authorities are set.
    """
    authorities = ("peer_tls_ca_file", settings.peer_tls_ca_file)
    files = _certificate_files(
        "peer",
        ("peer_tls_cert_file", settings.peer_tls_cert_file),
        ("peer_tls_key_file", settings.peer_tls_key_file),
        authorities,
    )
    if files is not None and files.authorities is None:
        raise SettingsError(authorities[0], None, f"must be given together with {files.certificate.setting}")
    return files


_OptionalPath = tuple[str, str | None]  # setting, path; None if the setting is not set


def _certificate_files(
    use: str, certificate: _OptionalPath, key: _OptionalPath, authorities: _OptionalPath
) -> CertificateFiles | None:
    (certificate_setting, certificate_path), (key_setting, key_path) = certificate, key
    authorities_setting, authorities_path = authorities
    if certificate_path is not None and key_path is not None:
        return CertificateFiles(
            use,
            SettingPath(certificate_setting, certificate_path),
            SettingPath(key_setting, key_path),
            SettingPath(authorities_setting, authorities_path) if authorities_path is not None else None,
        )
    for (setting, path), (required_setting, required_path) in (
        (certificate, key),
        (key, certificate),
        (authorities, certificate),
    ):
        if path is not None and required_path is None:
            raise SettingsError(required_setting, None, f"must be given together with {setting}")
    return None
