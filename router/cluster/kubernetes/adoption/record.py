"""What a Deployment had before its adoption: an annotation keeps it, so that the way back needs no file. No I/O."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

RECORD_ANNOTATION = "azureml-fe.adoption/record"
"""Not among the settings of the router, which have another prefix."""
KEYS_ANNOTATION = "azureml-fe.adoption/keys-of"
"""On a Secret that the adoption of a service has created. The value is the name of the service."""


@dataclass(frozen=True, slots=True)
class AdoptionRecord:
    """The annotations that the adoption has changed, with their values before; None if there were none. `replicas` is
    the number of replicas when the router took over, None before that."""

    annotations: Mapping[str, str | None]
    replicas: int | None = None

    def encode(self) -> str:
        """Return the value of the annotation."""
        document: dict[str, object] = {"annotations": dict(self.annotations)}
        if self.replicas is not None:
            document["replicas"] = self.replicas
        return json.dumps(document, sort_keys=True)


def decode_record(text: str) -> AdoptionRecord | None:
    """Return the record in an annotation; None if it is malformed."""
    try:
        document = json.loads(text)
        annotations, replicas = document["annotations"], document.get("replicas")
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    is_valid = isinstance(annotations, dict) and all(isinstance(value, str | None) for value in annotations.values())
    if not is_valid or not isinstance(replicas, int | None):
        return None
    return AdoptionRecord(annotations, replicas)
