"""One service from the Deployments that claim to be of it. No I/O, no clock.

Rules, where a cluster is not as it should be:

- A service is in one namespace. Where Deployments of several claim one name, the namespace of the oldest Deployment has
  it, so that nobody takes a name from another one.
- A version is one Deployment; of several that claim one, the oldest has it.
- Settings of a service that its Deployments say differently are those of the oldest.
- Wrong annotations: the Deployment keeps its settings as they were last right. Where they never were, those that are
  right count; and if it is the scaling that is wrong, the number of replicas is left alone.

Each breach is a `Problem` of a Deployment.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from router.cluster.kubernetes.annotations import Given, annotation_name, is_about_scaling, mapping_of, read
from router.cluster.kubernetes.objects import Deployment, Name
from router.services import Service, SettingsError, VersionKey, parse_service

KEYS_PREFIX = "azureml-fe-keys-"


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong about a Deployment: the reason and message of an Event."""

    deployment: Name
    uid: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Model:
    """One version in force. `is_scalable`: its settings say how many replicas it is to have."""

    key: VersionKey
    deployment: Deployment
    port: int
    is_scalable: bool


@dataclass(frozen=True, slots=True)
class Found:
    """One service in force. `keys` is its Secret."""

    service: Service
    models: tuple[Model, ...]
    keys: Name
    problems: tuple[Problem, ...]

    @property
    def lacks_keys(self) -> bool:
        """Whether clients must send a key and there is none."""
        return self.service.has_keys and not (self.service.primary_key or self.service.secondary_key)


class Finder:
    """Puts one service together from the Deployments that claim to be of it, the oldest first."""

    def __init__(
        self, name: str, claims: list[Deployment], right: dict[str, Given], defaults: Mapping[str, object]
    ) -> None:
        self._name = name
        self._defaults = defaults
        self._claims = claims
        self._right = right
        self._problems: list[Problem] = []
        self._unsettled: set[str] = set()  # uids of Deployments whose scaling is wrong, and never was right

    def find(self) -> Found:
        """The service, without its keys."""
        versions = self._versions()
        service = self._settled(versions)
        namespace = self._claims[0].namespace
        secret = next((given.keys_secret for _, given in versions.values() if given.keys_secret), None)
        wrong = {problem.uid for problem in self._problems}
        for deployment, given in versions.values():
            if deployment.uid not in wrong:
                self._right[deployment.uid] = given
            if deployment.failure:
                message = f"{deployment.replicas} replicas cannot all be had: {deployment.failure}"
                self._tell(deployment, "ReplicasRefused", message)
        models = tuple(
            Model((self._name, version), deployment, given.port, deployment.uid not in self._unsettled)
            for version, (deployment, given) in versions.items()
        )
        return Found(service, models, (namespace, secret or KEYS_PREFIX + self._name), tuple(self._problems))

    def _versions(self) -> dict[str, tuple[Deployment, Given]]:
        """Who has which version."""
        versions: dict[str, tuple[Deployment, Given]] = {}
        oldest = self._claims[0]
        for deployment in self._claims:
            if deployment.namespace != oldest.namespace:
                self._tell(
                    deployment, "ServiceNameTaken",
                    f"service {self._name} is that of Deployment {oldest.name} in namespace {oldest.namespace}, "
                    "which is older; this one gets no requests and is not scaled: give it another azuremlappname",
                )  # fmt: skip
                continue
            given = self._given(deployment)
            if given.version in versions:
                other = versions[given.version][0].name
                self._tell(
                    deployment, "VersionTaken",
                    f"version {given.version} of service {self._name} is Deployment {other}, which is older; this one "
                    f"gets no requests and is not scaled: give it another {annotation_name('version')}",
                )  # fmt: skip
                continue
            versions[given.version] = (deployment, given)
        return versions

    def _given(self, deployment: Deployment) -> Given:
        """What counts of a Deployment's annotations."""
        given, faults = read(self._name, deployment.annotations)
        return self._refused(deployment, given, faults) if faults else given

    def _refused(self, deployment: Deployment, remainder: Given, faults: Iterable[SettingsError]) -> Given:
        """What counts where some are wrong: what was right last, else the `remainder`."""
        last = self._right.get(deployment.uid)
        stays = "those that are right are in force" if last is None else "the settings as they were stay in force"
        for fault in faults:
            self._tell(deployment, "SettingsRefused", f"{fault}; {stays}")
            if last is None and is_about_scaling(fault.setting.rpartition("/")[2].replace("-", "_")):
                self._unsettled.add(deployment.uid)
        return remainder if last is None else last

    def _settled(self, versions: dict[str, tuple[Deployment, Given]]) -> Service:
        """The service of these versions. Where their settings contradict one another, those that changed last, or of
        the youngest, give way: `versions` is then changed."""
        self._agree(versions)
        while True:
            try:
                return parse_service(
                    self._name,
                    mapping_of({name: {**g.settings, **g.service} for name, (_, g) in versions.items()}),
                    defaults=self._defaults,
                )
            except SettingsError as error:
                self._give_way(versions, error)

    def _agree(self, versions: dict[str, tuple[Deployment, Given]]) -> None:
        """Have the oldest Deployment's word on settings of the service."""
        said: dict[str, tuple[str, str]] = {}
        for version, (deployment, given) in versions.items():
            own = dict(given.service)
            for name, text in given.service.items():
                other, value = said.setdefault(name, (deployment.name, text))
                if value != text:
                    del own[name]
                    self._tell(
                        deployment, "SettingsRefused",
                        f"{annotation_name(name)} = {text!r}: must be {value!r}, as Deployment {other}, which is "
                        f"older, says of service {self._name}; that stays in force",
                    )  # fmt: skip
            versions[version] = (deployment, replace(given, service=own))

    def _give_way(self, versions: dict[str, tuple[Deployment, Given]], error: SettingsError) -> None:
        having = [v for v, (_, given) in versions.items() if error.setting in {**given.settings, **given.service}]
        if not having:
            raise error
        changed = [v for v in having if self._right.get(versions[v][0].uid) not in (None, versions[v][1])]
        version = (changed or having)[-1]
        deployment, given = versions[version]
        value = {**given.settings, **given.service}[error.setting]
        fault = SettingsError(annotation_name(error.setting), value, error.allowed)
        self._tell(deployment, "SettingsRefused", f"{fault}; it is not in force")
        last = self._right.get(deployment.uid)
        settings, above = dict(given.settings), dict(given.service)
        for values, former in ((settings, last and last.settings), (above, last and last.service)):
            if values.pop(error.setting, None) is not None and former and former.get(error.setting, value) != value:
                values[error.setting] = former[error.setting]
        versions[version] = (deployment, replace(given, settings=settings, service=above))

    def _tell(self, deployment: Deployment, reason: str, message: str) -> None:
        name = (deployment.namespace, deployment.name)
        self._problems.append(Problem(name, deployment.uid, reason, message))
