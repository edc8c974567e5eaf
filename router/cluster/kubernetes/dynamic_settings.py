"""The part of the dynamic configuration that the cluster needs: settings of services, and what is stored. No I/O."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

STORED_KEY = "dynamic-config"
"""The key of the last valid dynamic configuration in the ConfigMap with the last valid settings. All other keys are
uids of Deployments."""


def stored_dynamic_config(own: str | None, stored: Mapping[str, str]) -> dict[str, str]:
    """Return the part of the ConfigMap with the last valid settings that is about the dynamic configuration.

    `own` is what this router has in effect, None if it has nothing. Another router that has the same in effect since
    another time has not stored something else.
    """
    before = stored.get(STORED_KEY)
    if own is None or (before is not None and _document(own) == _document(before)):
        return {} if before is None else {STORED_KEY: before}
    return {STORED_KEY: own}


def _document(encoded: str) -> Any:
    try:
        fields = json.loads(encoded)
        return fields["source"], fields["text"]
    except (ValueError, KeyError, TypeError):
        return None
