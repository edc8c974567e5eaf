"""Makes the stores that the settings name."""

from __future__ import annotations

from pathlib import Path

from router.collection.store import FolderStore, Store
from router.config.router import RouterSettings

_FOLDER = "collected"


def make_store(settings: RouterSettings) -> Store:
    """Return the store for collected data."""
    folder = settings.collection_folder
    root = settings.state_dir / _FOLDER if folder is None else Path(folder)
    return FolderStore(root, settings.collection_folder_max_bytes)


def make_fallback(settings: RouterSettings) -> Store | None:
    """Return the store for what the other one has not taken when the router stops; None if there is none."""
    return None
