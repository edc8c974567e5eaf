"""Warnings about given keys that are easy to guess or shared. They never contain a key."""

from collections.abc import Mapping

MIN_LENGTH = 16
"""Shorter keys can be guessed. Generated keys have 43 characters."""


def key_warnings(keys_by_service: Mapping[str, tuple[str | None, str | None]]) -> list[str]:
    """Return one line for each short key, each service with two equal keys, and each key of several services. The keys
    of a service are its primary and its secondary key."""
    lines: list[str] = []
    users: dict[str, list[str]] = {}
    for service, keys in keys_by_service.items():
        given = {name: key for name, key in zip(("primary_key", "secondary_key"), keys, strict=True) if key}
        lines += [
            f"service {service}: {name} has fewer than {MIN_LENGTH} characters, so it can be guessed"
            for name, key in given.items()
            if len(key) < MIN_LENGTH
        ]
        if len(given) > len(set(given.values())):
            lines.append(f"service {service}: both keys are equal, so clients cannot move from one to the other")
        for key in set(given.values()):
            users.setdefault(key, []).append(service)
    lines += [
        f"services {', '.join(names)}: have a key in common, so a client of one can use the others"
        for names in users.values()
        if len(names) > 1
    ]
    return lines
