"""From a request's head to a slot: address, method, key, length, version, queue.

Lives here: every reason for which a request is answered without a replica, in the order in which they are looked at,
so that a wrong key is refused before a body is read and before a replica hears of it. Must not live here: anything
that comes after the slot (`exchange`).
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Final

from router.gateway.authentication import refusal
from router.gateway.request import HELD, NEW, QUEUED, Request
from router.http import answers
from router.http.answers import Answer
from router.http.ids import clean_client_id
from router.http.target import origin_form, split_target
from router.telemetry.journal import REPLICAS_KEPT

if TYPE_CHECKING:
    from router.auth.keys import KeyCheck
    from router.auth.tokens import TokenCheck
    from router.gateway.pool import ReplicaPool
    from router.gateway.table import ServiceRoute, VersionRoute
    from router.slots.holder import HeldReplica

_METHODS: Final = frozenset((b"POST", b"GET"))
_CORS_PREFLIGHT: Final = (
    b"\r\nAccess-Control-Allow-Methods: GET, POST\r\nAccess-Control-Allow-Headers: Authorization, "
    b"Content-Type, azureml-model-deployment, traceparent, tracestate, x-ms-client-request-id"
    b"\r\nAccess-Control-Max-Age: 600"
)


class Admission(Request):
    """A request until it holds a slot."""

    __slots__ = ()

    # What it leads to: see `Exchange`.

    def start(self, lease: HeldReplica[ReplicaPool], now: float) -> None:
        raise NotImplementedError

    def refuse(self, answer: Answer) -> None:
        raise NotImplementedError

    def fault(self, error: Exception) -> None:
        raise NotImplementedError

    # The way to a slot.

    def begin(self) -> None:
        """Decide what becomes of the request, now that its head is read."""
        self.began = monotonic()
        gateway = self.gateway
        kept = self.kept
        self.request_id = request_id = gateway.ids.next()
        lines = b"\r\nx-ms-request-id: " + request_id + b"\r\nx-request-id: " + request_id
        if b"x-ms-client-request-id" in kept:
            self.client_id = client_id = clean_client_id(kept[b"x-ms-client-request-id"])
            if client_id:
                lines += b"\r\nx-ms-client-request-id: " + client_id
        self.answer_lines = self.id_lines = lines
        if self.refusal is not None:
            self.refuse(self.refusal)
            return
        address = gateway.addresses.get(self.target)
        if address is None and (address := self._find_service()) is None:
            return
        service, self.target = address
        self.service = service
        if (self.method not in _METHODS or service.origins is not None) and not self._allow_method_and_origin(service):
            return
        check = service.check
        if check is not None and not check.allows(kept.get(b"authorization")):
            self._not_authenticated(service, check)
            return
        self._authenticated(service)

    def _authenticated(self, service: ServiceRoute) -> None:
        """Go on to a slot, as far as that is possible now."""
        gateway = self.gateway
        kept = self.kept
        if self.length > gateway.settings.max_payload_bytes:
            self.refuse(answers.payload_too_large(gateway.settings.max_payload_bytes))
            return
        version = service.choose(kept.get(b"azureml-model-deployment"))
        if version is None:
            asked = kept[b"azureml-model-deployment"][:64].decode("latin-1")
            self.refuse(answers.unknown_version(service.name, asked))
            return
        self.version = version
        self.answer_lines += version.answer_line
        self.checked = now = monotonic()
        lease = version.holder.acquire(now)
        if lease is None:
            self._wait(version, now)
        else:
            self.start(lease, now)

    def _not_authenticated(self, service: ServiceRoute, check: KeyCheck | TokenCheck) -> None:
        """Neither key nor token is good: refuse it, or wait if the token's issuer may have a new key."""
        gateway = self.gateway
        if self.state == NEW and check.unknown_key_of and gateway.authentication.hold(self, check.unknown_key_of):
            self.state = HELD
            return
        reason = check.why_not(self.kept.get(b"authorization"))
        gateway.counters.auth_failures[service.name, reason] += 1
        self.refuse(refusal(reason))

    def authenticate_again(self) -> None:
        """Judge it finally, if its client still waits: the key that its token names may be known now."""
        if self.state != HELD or self.service is None:
            return
        try:
            service = self.gateway.services.get(self.service.name.encode())
            if service is None:
                self.refuse(answers.unknown_service(self.service.name))
            elif service.check is None or service.check.allows(self.kept.get(b"authorization")):
                self.service = service
                self._authenticated(service)
            else:
                self._not_authenticated(service, service.check)
        except Exception as error:  # noqa: BLE001 - others wait for the same key
            self.fault(error)

    def _find_service(self) -> tuple[ServiceRoute, bytes] | None:
        """The service of an address that is not remembered, and its replica's path; None: the request is answered."""
        gateway = self.gateway
        target = self.target
        if b"#" in target:  # what a fragment is for, no server knows (RFC 9110 section 4.2.5)
            self.refuse(answers.bad_request("a fragment in the target"))
            return None
        if target[:1] != b"/":
            path = origin_form(target, self.kept.get(b"host", b""))
            if path is None:
                self.refuse(answers.bad_request("the target is not a path of this host"))
                return None
            self.target = path
        address = split_target(self.target, gateway.scoring_prefix)
        if address is None:
            self._answer_elsewhere()
            return None
        name, path = address
        service = gateway.services.get(name)
        if service is None:
            self.refuse(answers.unknown_service(name[:64].decode("latin-1")))
            return None
        if target is self.target:
            gateway.remember_address(target, service, path)
        return service, path

    def _answer_elsewhere(self) -> None:
        """An address that is no service's."""
        if self.target == b"/" and self.method in (b"GET", b"HEAD"):
            self.refuse(answers.HEALTHY)
        elif self.method not in _METHODS:
            self.refuse(answers.method_not_allowed("GET, POST"))
        else:
            self.refuse(answers.no_such_path(self.gateway.settings.scoring_prefix))

    def _allow_method_and_origin(self, service: ServiceRoute) -> bool:
        """Answer a preflight or a wrong method, and return False; else mark the answer for a browser's origin."""
        origins = service.origins
        if origins is not None:
            origin = self.kept.get(b"origin", b"")
            if origin and (b"*" in origins or origin in origins):
                self.is_cross_origin = True
                self.answer_lines += b"\r\nAccess-Control-Allow-Origin: %b\r\nVary: Origin" % origin
                if self.method == b"OPTIONS" and b"access-control-request-method" in self.kept:
                    self.answer_lines += _CORS_PREFLIGHT
                    self.refuse(Answer(204, "", ""))
                    return False
                self.answer_lines += b"\r\nAccess-Control-Expose-Headers: *"
        if self.method not in _METHODS:
            self.refuse(answers.method_not_allowed("GET, POST, OPTIONS" if origins is not None else "GET, POST"))
            return False
        return True

    # The queue.

    def _wait(self, version: VersionRoute, now: float) -> None:
        """No slot is free: queue up, unless that is hopeless."""
        if not version.may_wait:
            self._refuse_for_want_of_slot(version)
            return
        self.state = QUEUED
        version.holder.enqueue(self, now)
        self.arrival = len(version.holder.waiters), version.holder.seen(REPLICAS_KEPT)
        self.gateway.slots_changed(version)
        version.watch_queue()

    def wait_anew(self, now: float) -> None:
        """The first replica is there: from now on the usual limit of the wait applies."""
        self.queued_seconds += now - self.waiting_since
        self.waiting_since = now

    def version_gone(self, now: float) -> None:
        """The version for which this waited is no more: another one of the service is as good, unless the client named
        it. The former holder has let go of this waiter."""
        service = self.gateway.services.get(self.service.name.encode()) if self.service is not None else None
        version = service.choose(self.kept.get(b"azureml-model-deployment")) if service is not None else None
        if version is None:
            self.waited_too_long(now)
        else:
            self.service = service
            self.queue_anew(version, now)

    def queue_anew(self, version: VersionRoute, now: float) -> None:
        """Wait on at this version: its queue has begun anew, or it is in another one's place. The former holder has let
        go of this waiter."""
        assert self.version is not None
        self.answer_lines = self.answer_lines.replace(self.version.answer_line, version.answer_line)
        self.queued_seconds += now - self.waiting_since
        self.state = NEW
        self.version = version
        lease = version.holder.acquire_again(now)
        if lease is None:
            self._wait(version, now)
        else:
            self.start(lease, now)

    def waited_too_long(self, now: float) -> None:
        """The time in the queue is up; the holder has let go of this waiter."""
        assert self.version is not None
        self.queued_seconds += now - self.waiting_since
        self.state = NEW
        self._refuse_for_want_of_slot(self.version)

    def _refuse_for_want_of_slot(self, version: VersionRoute) -> None:
        version.holder.refuse()
        if version.has_ready_replicas:
            self.refuse(answers.overloaded(version.service_name, version.retry_after()))
        else:
            self.refuse(answers.no_ready_replicas(version.service_name, version.retry_after()))
