"""Warnings about keys in a configuration file that are easy to guess or shared. They never contain a key."""

from collections.abc import Iterable

from router.model.services import Service

MIN_LENGTH = 16
"""Shorter keys can be guessed. Generated keys have 43 characters."""


def key_warnings(services: Iterable[Service]) -> list[str]:
    """Return one line for each short key, each service with two equal keys, and each key of several services."""
    lines: list[str] = []
    users: dict[str, list[str]] = {}
    for service in services:
        if not service.uses_keys:
            continue
        keys = {"primary_key": service.primary_key, "secondary_key": service.secondary_key}
        given = {name: key for name, key in keys.items() if key}
        lines += [
            f"service {service.name}: {name} has fewer than {MIN_LENGTH} characters, so it can be guessed"
            for name, key in given.items()
            if len(key) < MIN_LENGTH
        ]
        if len(given) > len(set(given.values())):
            lines.append(f"service {service.name}: both keys are equal, so clients cannot move from one to the other")
        for key in set(given.values()):
            users.setdefault(key, []).append(service.name)
    lines += [
        f"services {', '.join(names)}: have a key in common, so a client of one can use the others"
        for names in users.values()
        if len(names) > 1
    ]
    return lines
