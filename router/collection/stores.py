"""Makes the stores that the settings name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from router.collection.azure_store import AzureBlobStore
from router.collection.store import FolderStore, Store
from router.config.router import RouterSettings
from router.net.azure_login import check_container, read_login

_FOLDER = "collected"


def check_store(settings: RouterSettings, environ: Mapping[str, str]) -> None:
    """Raise `SettingsError` if the store for collected data cannot be used, whatever its storage says."""
    if settings.collection_container is not None:
        login = read_login(settings, environ)
        check_container("collection_container", settings.collection_container, login)


def make_store(settings: RouterSettings) -> Store:
    """Return the store for collected data."""
    if settings.collection_container is not None:
        return AzureBlobStore(settings.collection_container, settings)
    folder = settings.collection_folder
    return _folder_store(settings, settings.state_dir / _FOLDER if folder is None else Path(folder))


def make_fallback(settings: RouterSettings) -> Store | None:
    """Return the store for what the other one has not taken when the router stops; None if there is none."""
    if settings.collection_container is None or settings.collection_folder is None:
        return None
    return _folder_store(settings, Path(settings.collection_folder))


def _folder_store(settings: RouterSettings, folder: Path) -> Store:
    return FolderStore(folder, settings.collection_folder_max_bytes)
