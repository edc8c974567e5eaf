"""The local cluster: replicas are processes of this machine, described by one YAML file."""

from pathlib import Path

_EXAMPLES = Path(__file__).parents[2] / "examples"


def example_path() -> Path:
    """The local file of the shipped example."""
    return _EXAMPLES / "local.yaml"


def example_request_path() -> Path:
    """The body of a scoring request to the shipped example's service `iris`, JSON."""
    return _EXAMPLES / "sample-request.json"
