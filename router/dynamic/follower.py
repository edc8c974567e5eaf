"""Follows the source of the dynamic configuration: reads it at the start and then periodically, and applies changes.

    Source --document--> parse, check --> apply --> LastValidStore
                              |
                              +-- invalid: refused as a whole; what is in effect stays

Failures of the source never concern requests: it is polled in the background, and what is in effect stays. They are a
problem on the status page, and in the log once. Does not contain: the effects of the settings (`cli`, `supervisor`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from typing import Any

from router.config.dynamic import NO_DYNAMIC_SETTINGS, DynamicSettings, parse_dynamic_settings
from router.config.router import RouterSettings
from router.config.schema import SettingsError
from router.config.yaml_document import parse_yaml
from router.dynamic.last_valid import LastValid, LastValidStore
from router.dynamic.source import MAX_DOCUMENT_BYTES, Document, Source, SourceUnavailable
from router.model.problems import Problem
from router.model.services import Service
from router.net.backoff import Backoff
from router.telemetry.catalogue import Sample
from router.telemetry.log import event, rfc3339

_log = logging.getLogger("router.dynamic")

FETCH_SECONDS = 10.0
"""Maximum time of one read of the source."""
_MAX_DELAY_SECONDS = 60.0
"""Maximum time between two reads of a source that fails, unless it requests more."""
_MAX_RETRY_AFTER_SECONDS = 600.0
_LOG_AGAIN_SECONDS = 60.0
"""Minimum time between two log lines about a source that keeps failing, for different reasons."""
_MAX_UNKNOWN = 20

Check = Callable[[DynamicSettings], None]
"""Raises `SettingsError` if the settings contradict those of the other sources. Called in a thread."""
Apply = Callable[[DynamicSettings], Awaitable[None]]
"""Applies settings. Raises `SettingsError` before any change if they contradict those of the other sources, and OSError
if they cannot be applied now."""


class DynamicConfig:
    """The dynamic configuration of one router."""

    def __init__(self, source: Source, store: LastValidStore, settings: RouterSettings) -> None:
        """`settings` are those without the dynamic configuration."""
        self._source = source
        self._store = store
        self._allowed: Collection[str] = settings.dynamic_config_allow
        self._poll_seconds = settings.dynamic_config_poll_seconds
        self._backoff = Backoff(self._poll_seconds, max(_MAX_DELAY_SECONDS, self._poll_seconds), jitter=0.2)
        self._seen_etag = ""
        self._in_effect: LastValid | None = None
        self._refusal = ""  # the errors of the latest document
        self._failure = ""  # of the source
        self._failing_since = 0.0
        self._retry_after = 0.0
        self._failure_logged_at = float("-inf")
        self.settings: DynamicSettings = NO_DYNAMIC_SETTINGS
        """The settings in effect."""
        self.refusal_count = 0
        """Number of documents that were refused."""

    # Start.

    async def load(self, check: Check) -> DynamicSettings:
        """Return the settings to start with: those of the source, else the last valid ones, else none."""

        async def check_in_thread(settings: DynamicSettings) -> None:
            await asyncio.to_thread(check, settings)

        document = await self._fetch()
        if document is not None and await self._apply_document(document, check_in_thread):
            return self.settings
        await self._use_stored(check_in_thread)
        return self.settings

    async def _use_stored(self, apply: Apply) -> None:
        """Apply the last valid document, if it is of this source."""
        last = await self._store.read()
        if last is None or last.source != self._source.name:
            return
        try:
            settings = await asyncio.to_thread(self._parse, last.text.encode())
            await apply(settings)
        except (SettingsError, OSError) as error:
            message = "the last valid dynamic configuration cannot be used"
            event(_log, logging.ERROR, message, source=self._source.name, error=str(error))
            return
        self.settings, self._in_effect = settings, last
        message = "the last valid dynamic configuration is used"
        event(_log, logging.WARNING, message, source=self._source.name, etag=last.etag, since=rfc3339(last.applied_at))

    # Changes.

    async def run(self, apply: Apply) -> None:
        """Poll the source, and apply changes, until cancelled."""
        try:
            await self._poll_forever(apply)
        finally:
            self._source.close()

    async def _poll_forever(self, apply: Apply) -> None:
        delay = self._poll_seconds if not self._failure else self._backoff.next_delay()
        while True:
            await asyncio.sleep(delay)
            try:
                delay = await self.poll(apply)
            except Exception as error:  # noqa: BLE001  (what is in effect stays, and the next poll may succeed)
                message = "the dynamic configuration cannot be followed"
                event(_log, logging.ERROR, message, source=self._source.name, exception=error)
                delay = self._backoff.next_delay()

    async def poll(self, apply: Apply) -> float:
        """Read the source once. Return the seconds until the next read."""
        document = await self._fetch()
        if self._failure:
            if self._in_effect is None:
                await self._use_stored(apply)  # the store may have been away at the start, too
            return self._backoff.next_delay(self._retry_after)
        self._backoff.reset()
        if document is not None:
            await self._apply_document(document, apply)
        return self._poll_seconds

    async def _apply_document(self, document: Document, apply: Apply) -> bool:
        """Apply a changed document. Return False if that is not possible."""
        try:
            settings = await asyncio.to_thread(self._parse, document.content)
            await apply(settings)
        except SettingsError as error:
            self._refuse(document, error)
        except OSError as error:  # keys cannot be stored, for example; the next poll tries it again
            message = "the dynamic configuration cannot be applied now"
            event(_log, logging.ERROR, message, source=self._source.name, error=str(error))
        else:
            await self._set_in_effect(document, settings)
            return True
        return False

    async def _set_in_effect(self, document: Document, settings: DynamicSettings) -> None:
        was_refused, self._refusal = bool(self._refusal), ""
        self._seen_etag = document.etag
        text = document.content.decode("utf-8-sig")
        is_new = self._in_effect is None or self._in_effect.text != text
        self.settings = settings
        self._in_effect = LastValid(self._source.name, document.etag, text, time.time())
        if is_new or was_refused:
            message = "dynamic configuration in effect"
            event(
                _log, logging.INFO, message, source=self._source.name, etag=document.etag,
                router_settings=sorted(settings.router), services=sorted(settings.services)[:_MAX_UNKNOWN],
            )  # fmt: skip
        try:
            await self._store.write(self._in_effect)
        except (OSError, SettingsError) as error:
            message = "the dynamic configuration cannot be stored for the next start"
            event(_log, logging.ERROR, message, source=self._source.name, error=str(error))

    def _refuse(self, document: Document, error: SettingsError) -> None:
        self._seen_etag = document.etag
        self._refusal = str(error)
        self.refusal_count += 1
        event(
            _log, logging.ERROR, "dynamic configuration refused", source=self._source.name, etag=document.etag,
            effect=self._what_stays(), error=self._refusal,
            text=f"dynamic configuration {self._source.name} refused, {self._what_stays()}:\n{error}",
        )  # fmt: skip

    def _parse(self, content: bytes) -> DynamicSettings:
        """Return the settings of a document. Called in a thread. Raises `SettingsError`."""
        document = parse_yaml(content, self._source.name, MAX_DOCUMENT_BYTES)
        return parse_dynamic_settings(document.values, document.locate, self._allowed)

    # The source.

    async def _fetch(self) -> Document | None:
        """Return a changed document, else None; `_failure` is not empty if the source cannot be read."""
        self._retry_after = 0.0
        try:
            async with asyncio.timeout(FETCH_SECONDS):
                document = await self._source.fetch(self._seen_etag)
        except TimeoutError:
            self._fail(f"no response within {FETCH_SECONDS:g} s")
        except SourceUnavailable as error:
            self._retry_after = min(error.retry_after, _MAX_RETRY_AFTER_SECONDS)
            self._fail(str(error))
        except Exception as error:  # noqa: BLE001  (a fault of a library must not keep the router from starting)
            self._fail(f"unexpected {type(error).__name__}")
        else:
            if self._failure:
                message = "the source of the dynamic configuration can be read again"
                event(_log, logging.INFO, message, source=self._source.name)
            self._failure = ""
            return document
        return None

    def _fail(self, reason: str) -> None:
        now = time.monotonic()
        if not self._failure:
            self._failing_since = time.time()
        if not self._failure or (reason != self._failure and now - self._failure_logged_at > _LOG_AGAIN_SECONDS):
            self._failure_logged_at = now
            message = "the source of the dynamic configuration cannot be read"
            event(_log, logging.WARNING, message, source=self._source.name, error=reason, effect=self._what_stays())
        self._failure = reason

    def _what_stays(self) -> str:
        return "none is in effect" if self._in_effect is None else "the last valid one stays in effect"

    # For operators.

    @property
    def is_refused(self) -> bool:
        """True if the latest document is invalid, and so not in effect."""
        return bool(self._refusal)

    def samples(self) -> Iterator[Sample]:
        """Yield the samples of a scrape."""
        yield Sample("dynamic_config_unreadable_seconds", time.time() - self._failing_since if self._failure else 0.0)

    def problems(self, services: Mapping[str, Service]) -> Iterator[Problem]:
        """Yield the problems that an operator should correct."""
        yield from self.source_problems()
        unknown = list(self._unknown(services))
        if unknown:
            shown = ", ".join(unknown[:_MAX_UNKNOWN]) + (" and others" if len(unknown) > _MAX_UNKNOWN else "")
            cause = f"dynamic configuration: {self._source.name} has settings of what is not served here"
            yield Problem(cause, detail=shown)

    def source_problems(self) -> Iterator[Problem]:
        """Yield the problems of the source and of its document."""
        name = self._source.name
        if self._failure:
            since = rfc3339(self._failing_since)
            yield Problem(
                f"dynamic configuration: {name} cannot be read since {since}: {self._failure}; {self._what_stays()}"
            )
        if self._refusal:
            yield Problem(f"dynamic configuration: {name} is refused, {self._what_stays()}", output=self._refusal)

    def _unknown(self, services: Mapping[str, Service]) -> Iterator[str]:
        if not services:
            return  # not known yet
        for name, overlay in self.settings.services.items():
            service = services.get(name)
            if service is None:
                yield f"service {name}"
                continue
            for version in overlay.versions.keys() - {version.name for version in service.versions}:
                yield f"version {version} of service {name}"

    def document(self) -> dict[str, Any]:
        """Return the state for the status document. Times are seconds since the epoch."""
        last = self._in_effect
        return {
            "source": self._source.name,
            "etag": last.etag if last is not None else None,
            "applied_at": round(last.applied_at, 3) if last is not None else None,
            "failure": self._failure or None,
            "failing_since": round(self._failing_since, 3) if self._failure else None,
            "refused": self._refusal or None,
        }
