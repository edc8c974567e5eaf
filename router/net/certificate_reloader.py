"""Reads mounted certificates, and replaces them while the router runs.

The files of a mounted Secret are symbolic links through one link to a directory, which Kubernetes replaces atomically.
Reading two files is not atomic, so a pair is used only if two consecutive polls have read the same contents.

A router in a pod may start without a usable pair, and is unready then. If it exited instead, the reason would be in the
log of a container that has ended, and a corrected Secret would take effect only after the kubelet's back-off.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from router.config.polling import POLL_SECONDS
from router.config.regular_file import read_regular_file
from router.config.schema import SettingsError
from router.net.certificate_files import CertificateFiles, SettingPath
from router.net.certificates import ValidatedPair, validate_pair
from router.net.tls import CertificatePair, ReloadableContext, peer_contexts
from router.telemetry.catalogue import Sample
from router.telemetry.log import event

_log = logging.getLogger("router.net")

# A rejected pair is validated again after this time, because it may have been rejected before the start of its
# validity.
_VALIDATE_AGAIN_SECONDS = 60.0
_MAX_FILE_BYTES = 1_048_576
_EXPIRES_SOON_SECONDS = 14 * 86400.0


class CertificateReloader:
    """The certificate for one use (clients or peers): the pair in use, and its replacement when the files change."""

    def __init__(self, files: CertificateFiles, now: float, *, may_wait: bool = False) -> None:
        """Read the files. `now` is in seconds since the epoch.

        Raises `SettingsError` if they contain no pair that can be used. If `may_wait`, there is no pair in use then
        until the files have one.
        """
        self._files = files
        self._current: ValidatedPair | None = None
        self._in_use: CertificatePair | None = None  # the contents of the files that `_current` was made of
        self._rejected: CertificatePair | str | None = None
        self._rejection_reason = ""
        self._validate_again_at = 0.0
        self._next_poll_at = 0.0
        self.errors = 0
        """The number of pairs that were rejected."""
        # The contents of the files at the last poll: a pair, or the reason why they cannot be read.
        self._last_read: CertificatePair | str = _read_contents(files)
        self._replace(self._last_read, now, raises=not may_wait)

    @property
    def pair(self) -> CertificatePair | None:
        """The pair in use; None if the files have never contained one that can be used."""
        return self._current.pair if self._current is not None else None

    @property
    def not_after(self) -> float | None:
        """When the certificate in use expires: seconds since the epoch."""
        return self._current.not_after if self._current is not None else None

    @property
    def last_reload_succeeded(self) -> bool:
        """True if the pair in use is the pair in the files."""
        return self._rejected is None

    def samples(self) -> Iterator[Sample]:
        """Yield the samples of a scrape; see `telemetry.catalogue`."""
        use = self._files.use
        if self._current is not None:
            yield from self._expiry_samples(self._current)
        yield Sample("certificate_errors", self.errors, (use,))
        yield Sample("certificate_last_reload_success", self.last_reload_succeeded, (use,))

    def _expiry_samples(self, current: ValidatedPair) -> Iterator[Sample]:
        yield Sample("certificate_expiry_timestamp_seconds", current.not_after, (self._files.use,))
        if (not_after := current.authorities_not_after) is not None:
            authorities = "client-ca" if self._files.for_clients else "peer-ca"
            yield Sample("certificate_expiry_timestamp_seconds", not_after, (authorities,))

    def unmet_conditions(self) -> Iterator[str]:
        """Yield why this router is not ready; nothing if a pair is in use."""
        if self._current is None:
            yield f"no usable {self._files.use} certificate: {self._rejection_reason}"

    def problems(self, now: float) -> Iterator[str]:
        """Yield the problems that an operator should correct, one line each. `now` is in seconds since the epoch."""
        current, use = self._current, self._files.use
        if current is None:
            yield from self.unmet_conditions()
            return
        if self._rejected is not None:
            yield f"{use} certificate rejected, the previous one stays in use: {self._rejection_reason}"
        if current.correction:
            yield f"{use} certificate corrected: clients get the chain of {self._files.certificate.path} " + (
                current.correction
            )
        if (remaining := current.not_after - now) < _EXPIRES_SOON_SECONDS:
            verb = "expires" if remaining > 0 else "expired"
            yield f"{use} certificate {verb} at {_timestamp(current.not_after)}"

    def poll(self, now: float) -> CertificatePair | None:
        """Read the files, at most once a second. Return a new pair if one is in use from now on, else None."""
        if self._next_poll_at - POLL_SECONDS <= now < self._next_poll_at:  # unless the clock was set back
            return None
        self._next_poll_at = now + POLL_SECONDS
        contents = _read_contents(self._files)
        previous, self._last_read = self._last_read, contents
        if contents != previous:
            return None  # the files may be incomplete
        if self._current is not None and contents == self._in_use:
            if self._rejected is not None:
                self._log_current(self._current, "certificate in the files is the one in use again", now)
            self._rejected = None
            return None
        if contents == self._rejected and now < self._validate_again_at:
            return None
        return self._replace(contents, now)

    def _replace(self, contents: CertificatePair | str, now: float, *, raises: bool = False) -> CertificatePair | None:
        """Use `contents` if they are a valid pair, and return the pair then. If `raises`, raise `SettingsError` for
        others."""
        is_first = self._current is None
        self._validate_again_at = now + _VALIDATE_AGAIN_SECONDS
        try:
            if isinstance(contents, str):
                raise SettingsError(self._files.certificate.setting, None, contents)
            self._current = current = validate_pair(self._files, contents, now)
        except SettingsError as error:
            if raises:
                raise
            self._rejection_reason = contents if isinstance(contents, str) else str(error)
            if contents != self._rejected:
                self.errors += 1
                message = "certificate rejected" + ("" if is_first else ", the previous one stays in use")
                event(_log, logging.ERROR, message, error=self._rejection_reason)
            self._rejected = contents
            return None
        self._rejected, self._in_use = None, contents
        self._log_current(current, "certificate in use" if is_first else "new certificate in use", now)
        return current.pair

    def _log_current(self, current: ValidatedPair, message: str, now: float) -> None:
        expires_soon = current.not_after - now < _EXPIRES_SOON_SECONDS
        fields: dict[str, Any] = {"correction": current.correction} if current.correction else {}
        event(
            _log, logging.WARNING if expires_soon or fields else logging.INFO, message, use=self._files.use,
            subject=current.subject, names=list(current.names), expires=_timestamp(current.not_after), **fields,
        )  # fmt: skip


class PeerCertificateReloader(CertificateReloader):
    """The certificate of the links between pods, and the contexts that use it."""

    def __init__(self, files: CertificateFiles, now: float, *, may_wait: bool = False) -> None:
        """See `CertificateReloader`. Without a pair, all handshakes fail."""
        super().__init__(files, now, may_wait=may_wait)
        if self.pair is None:
            contexts = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        else:
            contexts = peer_contexts(self.pair)
        self.server_context, self.client_context = map(ReloadableContext, contexts)

    def poll(self, now: float) -> CertificatePair | None:
        """See `CertificateReloader`; also replaces the certificate of the contexts."""
        pair = super().poll(now)
        if pair is not None:
            self.server_context.current, self.client_context.current = peer_contexts(pair)
        return pair


def _read_contents(files: CertificateFiles) -> CertificatePair | str:
    """Return the contents of the files, or the reason why one of them cannot be read."""
    try:
        authorities = _read_file(files.authorities) if files.authorities is not None else None
        return CertificatePair(_read_file(files.certificate), _read_file(files.key), authorities)
    except SettingsError as error:
        return str(error)


def _read_file(file: SettingPath) -> bytes:
    try:
        data = read_regular_file(file.path, _MAX_FILE_BYTES + 1)
    except OSError as error:
        raise SettingsError(*file, f"cannot be read: {error.strerror}") from None
    if len(data) > _MAX_FILE_BYTES:
        raise SettingsError(*file, f"must be at most {_MAX_FILE_BYTES} bytes")
    return data


def _timestamp(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%SZ}"
