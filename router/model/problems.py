"""A problem that an operator should correct, as a value. The part of the router that detects it says what belongs
together, so that nobody has to find that out from texts."""

from dataclasses import dataclass

from router.model.services import DEFAULT_VERSION_NAME, describe_version


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem. Problems with the same `cause` have one remedy, and are shown as one."""

    cause: str
    """In one line, without names of services and replicas, and without numbers that change."""
    service: str = ""
    """Empty for a problem of the router itself."""
    version: str = DEFAULT_VERSION_NAME
    place: str = ""
    """The replica or the Deployment; empty if it is the whole version, or the router."""
    detail: str = ""
    """In one line: what differs between problems with this cause."""
    output: str = ""
    """Further lines, such as the output of a program."""

    @property
    def note(self) -> str:
        """Place and detail."""
        return ", ".join(filter(None, (self.place, self.detail)))

    @property
    def line(self) -> str:
        """The problem in one line: `service iris, version blue: a replica is not ready: status 503 (iris-1)`."""
        subject = f"{describe_version((self.service, self.version))}: " if self.service else ""
        return subject + with_note(self.cause, self.note)

    @property
    def text(self) -> str:
        """The line, and the further lines."""
        return f"{self.line}\n{self.output}" if self.output else self.line


def with_note(cause: str, note: str) -> str:
    """Return a cause with its note in parentheses."""
    return f"{cause} ({note})" if note else cause
