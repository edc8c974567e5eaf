"""A day of simulated traffic into Azure Blob Storage (Azurite), which throttles, by two writers at the same time."""

import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path, PurePosixPath

from router.collection.azure_store import AzureBlobStore
from router.config.router import load_settings
from router.model.data_collection import PAYLOADS
from tests.collection.azurite import needs_azurite, running_azurite, settings_file
from tests.collection.simulation import Simulation, check_stored
from tests.collection.throttle import throttled

pytestmark = needs_azurite

HOURS, DAYS = 24, 2
WRITERS = ("pod-1", "pod-2")


def test_each_line_of_a_day_is_stored_once_in_its_blob(tmp_path: Path) -> None:
    with running_azurite(tmp_path) as azurite, throttled(azurite) as throttle:
        throttle.retry_after = "60"  # of simulated time
        connection = settings_file(tmp_path, "connection", azurite.connection_string(throttle.endpoint))
        settings = load_settings(environ={"HOME": str(tmp_path)}, flags={"azure_connection_string_file": connection})

        def write_day(instance: str) -> tuple[Simulation, dict[str, tuple[str, int]]]:
            store = AzureBlobStore(azurite.container, settings)
            simulation = Simulation(store, instance=instance, flush_seconds=1800.0)
            simulation.assembly.collectors = {("resnet", "default"): replace(PAYLOADS, rolling_rate="day")}
            sent = simulation.pass_day(random.Random(instance), ["iris", "resnet"], 90.0)
            store.close()
            return simulation, sent

        with ThreadPoolExecutor(len(WRITERS)) as executor:
            days = list(executor.map(write_day, WRITERS))
        events = azurite.events(rolling={"resnet": "day"})  # checks blobs, times and formats
        folders = Counter(str(PurePosixPath(name).parent) for name in azurite.blobs())
        assert min(throttle.refused[429], throttle.refused[503]) > 50
    sent = {request_id: exchange for _, exchanges in days for request_id, exchange in exchanges.items()}
    check_stored(events, sent)
    assert len(events) > 4_000
    # Each writer has one blob for each hour or day and collection: none was lost and replaced.
    assert set(folders.values()) == {len(WRITERS)}
    assert len(folders) == 2 * (HOURS + DAYS)
    for simulation, exchanges in days:
        counts = simulation.log.counts
        assert sum(counts.events.values()) == 2 * len(exchanges)
        assert not counts.dropped
        assert simulation.failures["throttled"] > 50
        assert simulation.log.budget.used == 0
