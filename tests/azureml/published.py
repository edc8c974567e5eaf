"""The published files of `corpus/`, each with the entry scripts and models that it names."""

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

CORPUS = Path(__file__).with_name("corpus")
CASES = sorted(path.name for path in CORPUS.iterdir() if path.is_dir())
_SUFFIXES = (".json", ".yml", ".yaml")

ENTRY_SCRIPT = """\
import os


def init():
    pass


def run(data):
    return {"data": data, "environment": {name: os.environ.get(name) for name in ("AZUREML_MODEL_DIR", "FILE_NAME")}}
"""


def files_of(case: str, directory: Path) -> list[Path]:
    """Copy the files of a case into `directory`, create the files that they name, and return the paths of the
    copies."""
    root = directory / "a" / "b" / case  # some name files two levels above
    shutil.copytree(CORPUS / case, root)
    paths = sorted(path for path in root.rglob("*") if path.suffix in _SUFFIXES)
    for path in paths:
        create_named_files(path, document_of(path))
    return paths


def document_of(path: Path) -> Any:
    """Return the content of a file."""
    text = path.read_text()
    return json.loads(text) if path.suffix == ".json" else yaml.load(text, Loader=yaml.BaseLoader)


def create_named_files(path: Path, document: Mapping[str, Any]) -> None:
    """Create the entry script and the model of a document."""
    code = document.get("code_configuration") or {}
    source = code.get("code") or document.get("sourceDirectory") or "."
    script = code.get("scoring_script") or document.get("entryScript")
    if script:
        (path.parent / source).mkdir(parents=True, exist_ok=True)
        (path.parent / source / script).write_text(ENTRY_SCRIPT)
    model = document.get("model")
    if isinstance(model, Mapping):
        target = path.parent / model["path"]
        if target.suffix:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(b"\x80weights")
        else:
            target.mkdir(parents=True, exist_ok=True)
            (target / "weights.bin").write_bytes(b"\x80weights")


def leaves(document: object, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the path of each value of a document that is not a mapping with keys."""
    if isinstance(document, Mapping) and document:
        for name, value in document.items():
            yield from leaves(value, (*path, str(name)))
    else:
        yield path
