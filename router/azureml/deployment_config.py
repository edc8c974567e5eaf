"""The first format (SDK and CLI v1): `deploymentconfig.json` of an AKS web service, and `inferenceconfig.json`.

Names and meanings of keys are those of `AksWebservice.deploy_configuration` and `InferenceConfig` of azureml-core, and
of the reference of Azure's CLI v1. The files do not name the service, nor the models that the CLI registers with it.
"""

from pathlib import Path

from router.azureml.keys import KeyReader
from router.azureml.services import DeclaredService, DeclaredVersion, Key, Program, ProgramKind
from router.config.dialects import SETTING_NAMES, KeyPath
from router.config.schema import ErrorCollector, SettingsError
from router.config.service_settings import SERVICE_SETTINGS, VERSION_SETTINGS
from router.config.yaml_document import YamlDocument
from router.model.services import DEFAULT_VERSION_NAME

_DECLARED = {setting.name for setting in (*SERVICE_SETTINGS, *VERSION_SETTINGS)}
_SERVICE = {setting.name for setting in SERVICE_SETTINGS}
_SETTING_BY_PATH = {path: row.setting for row in SETTING_NAMES for path in row.v1 if row.setting in _DECLARED}

MAPPINGS = ("tags", "properties")
"""Settings whose value is a mapping."""

_TARGET: tuple[KeyPath, ...] = tuple(
    (name,) for name in ("computeType", "computeName", "computeTargetName", "compute_target_name")
)
_LOSSES: dict[KeyPath, str] = {
    ("dataCollection", "eventHubEnabled"): "collected data is stored in a folder or a blob container only",
    ("blobfuseEnabled",): "models are in the image or in a volume, which the Deployment mounts",
    ("sslEnabled",): "HTTPS is a setting of the router, not of a service: tls_cert_file, or sslSecret of the chart",
    ("sslCertPemFile",): "the certificate is a setting of the router: tls_cert_file, or sslSecret of the chart",
    ("sslKeyPemFile",): "the certificate's key is a setting of the router: tls_key_file, or sslSecret of the chart",
    ("sslCname",): "the name is that of the router: sslCname of the chart",
    ("dnsNameLabel",): "the address is that of the router's Service",
}

_IMAGE_KEYS: dict[KeyPath, str] = {
    ("extraDockerfileSteps",): "run these steps in the Dockerfile of the image",
    ("baseImageRegistry",): "the cluster needs the registry's credentials as a pull Secret",
    ("environment", "docker", "baseDockerfile"): "build the image with this Dockerfile",
    ("environment", "docker", "baseImageRegistry"): "the cluster needs the registry's credentials as a pull Secret",
    ("enableGpu",): "GPUs are gpuCores of the deployment configuration",
    ("cudaVersion",): "CUDA is part of the image",
    ("environment", "docker", "buildContext"): "build the image with the Dockerfile of this context",
    ("environment", "r"): "R and its packages are part of the image",
    ("environment", "spark", "packages"): "the router runs no Spark",
    ("environment", "spark", "repositories"): "the router runs no Spark",
    (
        "environment",
        "docker",
        "shmSize",
    ): "an emptyDir of the pod with medium: Memory, at /dev/shm, has a size",
    ("environment", "docker", "arguments"): "arguments of docker have no effect in a pod",
}

_WITHOUT_EFFECT: tuple[KeyPath, ...] = (
    ("environment", "assetId"),
    ("environment", "databricks"),
    ("environment", "docker", "platform"),
    ("environment", "spark", "precachePackages"),
)
"""Parts of each environment that the SDK saves. A web service does not use them."""


def read_deployment_config(
    name: str, deployment: YamlDocument | None, inference: YamlDocument | None, errors: ErrorCollector
) -> tuple[DeclaredService, list[KeyReader]]:
    """Return the service `name` of the two files, of which one may be missing, and the readers with their losses.

    Collects errors. `name` is overridden by the key `name` of the deployment configuration.
    """
    readers = []
    settings: dict[str, Key] = {}
    namespace = None
    program = Program(kind=ProgramKind.UNKNOWN)
    if deployment is not None:
        reader = KeyReader(deployment, errors)
        readers.append(reader)
        given = reader.text(("name",))
        name = given.value if given else name
        namespace = reader.text(("namespace",))
        settings = _read_settings(reader, errors)
        reader.lose_others("v1")
    if inference is not None:
        reader = KeyReader(inference, errors)
        readers.append(reader)
        program = _read_program(reader, Path(inference.file).absolute().parent, settings)
        if program.source is not None:
            settings["cancellation"] = Key("none", "cancellation", program.source.where, is_given=False)
        reader.lose_others("v1")
    version = DeclaredVersion(
        name=DEFAULT_VERSION_NAME,
        settings={setting: key for setting, key in settings.items() if setting not in _SERVICE},
        program=program,
    )
    of_service = {setting: key for setting, key in settings.items() if setting in _SERVICE}
    return DeclaredService(name=name, settings=of_service, versions=(version,), namespace=namespace), readers


def _read_settings(reader: KeyReader, errors: ErrorCollector) -> dict[str, Key]:
    compute = reader.text(("computeType",))
    if compute is not None and compute.value.upper() != "AKS":
        problem = "must be AKS: other targets of the first SDK have no router"
        errors.add(SettingsError("computeType", compute.value, problem, compute.where))
    reader.ignore(*_TARGET)
    settings: dict[str, Key] = {}
    for path, setting in _SETTING_BY_PATH.items():
        key = reader.texts(path) if setting in MAPPINGS else reader.text(path)
        if key is None:
            continue
        if setting in settings and settings[setting].value != key.value:
            errors.add(SettingsError(key.name, None, f"contradicts {settings[setting].name}", key.where))
        settings[setting] = key
    for path, reason in _LOSSES.items():
        reader.lose(path, reason)
    return settings


def _read_program(reader: KeyReader, directory: Path, settings: dict[str, Key]) -> Program:
    script = reader.text(("entryScript",))
    source = reader.text(("sourceDirectory",))
    source_directory = directory / source.value if source else directory
    entry_script = (source_directory / script.value).resolve() if script else None
    reader.ignore(("runtime",), ("environment", "name"), ("environment", "version"))
    reader.ignore(("environment", "inferencingStackVersion"), ("environment", "python", "interpreterPath"))
    reader.ignore(("environment", "docker", "enabled"), ("environment", "docker", "sharedVolumes"))
    reader.ignore(*_WITHOUT_EFFECT)
    reader.lose(("schemaFile",), "the entry script declares the schema of its data (inference-schema)")
    if (description := reader.text(("description",))) is not None:
        settings.setdefault("description", description)
    for path, reason in _IMAGE_KEYS.items():
        reader.lose(path, reason)
    image = reader.text(("environment", "docker", "baseImage")) or reader.text(("baseImage",))
    reader.ignore(("baseImage",))
    conda_file = reader.text(("condaFile",))
    is_in_image = reader.text(("environment", "python", "userManagedDependencies"))
    python = reader.key(("environment", "python"))
    packages = conda_file or (None if is_in_image is not None and is_in_image.value.lower() == "true" else python)
    return Program(
        kind=ProgramKind.ENTRY_SCRIPT if entry_script else ProgramKind.UNKNOWN,
        source=script,
        script=script,
        entry_script=entry_script,
        source_directory=source_directory.resolve() if source else None,
        image=image,
        packages=packages,
        environment=reader.variables(("environment", "environmentVariables")),
    )
