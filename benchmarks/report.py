"""Write the results into README.md, between its markers, and draw plots/throughput.png.

Reads the results that the other scripts stored. A section without results stays unchanged. Results of a ``--quick`` run
are rejected.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any, Final

from benchmarks.harness.engines import ENGINES
from benchmarks.harness.processes import ROOT
from benchmarks.harness.session import DEFAULT_OUT

README: Final = ROOT / "benchmarks" / "README.md"
PLOT: Final = ROOT / "benchmarks" / "plots" / "throughput.png"
FLOORS: Final = {"envoy": 1.25, "aiohttp": 4.0, "haproxy": 0.4}  # minimum ratio router/engine at 32 connections
FLOOR_CONNECTIONS: Final = 32
GROWTH_LIMIT_BYTES: Final = 64 * 2**20
TOP_FUNCTIONS: Final = 20
MIB: Final = 2**20

Document = Mapping[str, Any]


def values(document: Document, field: str, **where: object) -> list[float]:
    """Return a field of all matching cells, one per round."""
    matching = [cell for cell in document["cells"] if all(cell[name] == value for name, value in where.items())]
    return [float(cell[field]) for cell in matching if cell.get(field) is not None]


def spread(numbers: list[float]) -> str:
    """Return the median, and the lowest and highest round."""
    return f"{median(numbers):,.0f} ({min(numbers):,.0f} to {max(numbers):,.0f})" if numbers else "-"


def table(header: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table. The first column is text, the others are numbers."""
    ruler = ["---"] + ["---:"] * (len(header) - 1)
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, ruler, *rows))


def rounds(document: Document) -> str:
    """Return what the medians are taken of."""
    return f"median of {document['rounds']} rounds of {document['seconds']} s"


def engines(document: Document) -> list[str]:
    """Return the measured engines, in the order of `ENGINES`."""
    measured = {cell["engine"] for cell in document["cells"]}
    return [name for name in ENGINES if name in measured]


def conditions(document: Document) -> str:
    """Return the conditions of the measurement."""
    machine = ", ".join(f"{name}: {value}" for name, value in document["machine"].items())
    tools = ", ".join(f"{name}: {value}" for name, value in document["tools"].items())
    versions = "; ".join(f"{name}: {value}" for name, value in document["versions"].items() if value != "-")
    return (
        f"Command: `{document['command']}`, {document['taken']}. {machine}. {tools}. CPUs: {document['cpus']}.\n"
        f"Engines: {versions}."
    )


def throughput(document: Document) -> str:
    """Return the section with requests per second and the required ratios."""
    connections = sorted({cell["connections"] for cell in document["cells"]})

    def rate(engine: str, count: int) -> float:
        return median(values(document, "requests_per_second", engine=engine, connections=count))

    names = engines(document)
    rows = []
    for name in names:
        cells = [spread(values(document, "requests_per_second", engine=name, connections=n)) for n in connections]
        cpu = values(document, "engine_cpu", engine=name, connections=FLOOR_CONNECTIONS)
        ratios = [f"{rate('router', n) / rate(name, n):.2f}" for n in connections] if "router" in names else []
        rows.append([ENGINES[name].title, *cells, f"{median(cpu):.0%}" if cpu else "-", *ratios])
    header = ["engine", *(f"{n} connections" for n in connections), f"engine's CPU at {FLOOR_CONNECTIONS}"]
    if "router" in names:
        header += [f"router/engine at {n}" for n in connections]
    text = f"Requests per second, {rounds(document)} (lowest to highest):\n\n" + table(header, rows)
    if "router" in names and FLOOR_CONNECTIONS in connections:
        routers = [name for name in ("router", "compiled") if name in names]
        floors = [
            [ENGINES[name].title, f"{floor:.2f}", *(f"{rate(router, 32) / rate(name, 32):.2f}" for router in routers)]
            for name, floor in FLOORS.items()
            if name in names
        ]
        measured = {"router": "measured at 32 connections", "compiled": "compiled"}
        text += "\n\n" + table(["router against", "floor", *(measured[name] for name in routers)], floors)
    return text + "\n\n" + disturbance(document)


def disturbance(document: Document) -> str:
    """Return the CPU time that other processes used in the meantime."""
    others = values(document, "others_cpu")
    text = "CPU time that processes outside the benchmark (or a hypervisor) took during a measurement: "
    return text + f"{median(others):.2f} CPUs in the median, {max(others):.2f} at most."


def latency(document: Document) -> str:
    """Return the section with latencies, absolute and added to the direct path."""
    rows = []
    for name in engines(document):
        row = [ENGINES[name].title]
        for percentile in ("p50", "p99"):
            latencies = values(document, percentile, engine=name)
            direct = values(document, percentile, engine="direct")
            added = median(engine - path for engine, path in zip(latencies, direct, strict=True))
            row += [f"{median(latencies):,.0f}", "-" if name == "direct" else f"{added:+,.0f}"]
        rows.append(row)
    header = ["engine", "p50, µs", "added p50, µs", "p99, µs", "added p99, µs"]
    rate = document["cells"][0]["rate"]
    text = f"At {rate:,} requests/s, {rounds(document)}:\n\n"
    return text + table(header, rows)


def bodies(document: Document) -> str:
    """Return the section with bytes per second and memory growth."""
    rows = []
    for name in engines(document):
        row = [ENGINES[name].title]
        for direction in ("upload", "download"):
            rate = median(values(document, "bytes_per_second", engine=name, direction=direction))
            nginx = values(document, "bytes_per_second", engine="nginx", direction=direction)
            growth = values(document, "rss_growth", engine=name, direction=direction)
            row += [f"{rate / 1e6:,.0f}", f"{rate / median(nginx):.2f}" if nginx else "-"]
            row += [f"{max(growth) / MIB:.1f}" if growth else "-"]
        rows.append(row)
    columns = ("MB/s", "relative to nginx", "memory growth, MiB")
    header = ["engine", *(f"{direction}: {column}" for direction in ("upload", "download") for column in columns)]
    text = f"16 concurrent transfers of {document['cells'][0]['bytes']:,} bytes each; their total MB/s, median of "
    text += f"{document['rounds']} rounds; memory growth of the worst round:\n\n" + table(header, rows)
    growth = values(document, "rss_growth", engine="router")
    if growth:
        limit = GROWTH_LIMIT_BYTES // MIB
        text += f"\n\nThe router's memory grew by at most {max(growth) / MIB:.1f} MiB; the limit is {limit} MiB."
    return text


def tokens(document: Document) -> str:
    """Return the section with requests per second and latency of each authentication method, of all engines that
    support it."""
    titles = {cell["case"]: cell["title"] for cell in document["cells"] if cell["engine"] == "router"}
    supported = {
        name: {cell["case"] for cell in document["cells"] if cell["engine"] == name} for name in engines(document)
    }

    def rate(name: str, case: str) -> float:
        return median(values(document, "requests_per_second", engine=name, case=case))

    rows = [
        [
            title,
            ENGINES[name].title.partition(",")[0],
            spread(values(document, "requests_per_second", engine=name, case=case)),
            f"{1e6 / rate(name, case) - 1e6 / rate(name, 'key'):+,.0f}",
            f"{rate('router', case) / rate(name, case):.2f}",
            *(f"{median(values(document, percentile, engine=name, case=case)):,.0f}" for percentile in ("p50", "p99")),
        ]
        for case, title in titles.items()
        for name in reversed(supported)
        if case in supported[name]
    ]
    header = ["authentication", "engine", "requests/s", "µs more than a key", "router/engine", "p50, µs", "p99, µs"]
    text = f"Requests per second with 32 connections, latency at 1,000 requests/s, {rounds(document)}:\n\n"
    return text + table(header, rows) + "\n\n" + disturbance(document)


TLS_ROWS: Final = (  # title, `what` of the cells, field
    ("full handshake, TLS 1.3: CPU of the engine, µs", "full, TLS 1.3", "cpu_microseconds"),
    ("full handshake, TLS 1.2: CPU of the engine, µs", "full, TLS 1.2", "cpu_microseconds"),
    ("resumed handshake, TLS 1.2: CPU of the engine, µs", "resumed, TLS 1.2", "cpu_microseconds"),
    ("full handshakes per second, TLS 1.3 (the clients are the limit)", "full, TLS 1.3", "per_second"),
    ("resumed handshakes per second, TLS 1.2 (the clients are the limit)", "resumed, TLS 1.2", "per_second"),
    ("requests/s over 1 keep-alive connection", "kept, 1 connections", "requests_per_second"),
    ("requests/s over 32 keep-alive connections", "kept, 32 connections", "requests_per_second"),
    ("1,000 requests/s over keep-alive connections: p50, µs", "latency, kept", "p50"),
    ("the same: p99, µs", "latency, kept", "p99"),
    ("100 new connections/s, full handshake and one request: p50, µs", "latency, full", "p50"),
    ("the same: p99, µs", "latency, full", "p99"),
    ("100 new connections/s, resumed (TLS 1.3) and one request: p50, µs", "latency, resumed", "p50"),
    ("the same: p99, µs", "latency, resumed", "p99"),
)


def tls(document: Document) -> str:
    """Return the section with handshakes, throughput and latency of HTTPS."""
    names = engines(document)
    rows = []
    for title, what, field in TLS_ROWS:
        medians = {name: median(values(document, field, engine=name, what=what)) for name in names}
        ratios = [f"{medians['router'] / medians[name]:.2f}" for name in names if name != "router"]
        rows.append([title, *(f"{medians[name]:,.0f}" for name in names), *ratios])
    titles = {name: ENGINES[name].title.partition(",")[0] for name in names}
    header = ["", *titles.values(), *(f"router/{titles[name]}" for name in names if name != "router")]
    text = f"One certificate (ECDSA P-256), each engine on one CPU, {rounds(document)}:\n\n"
    return text + table(header, rows) + "\n\n" + disturbance(document)


def growth(document: Document) -> str:
    """Return the section with throughput and memory by number of services, active services and replicas."""
    cells = [cell for cell in document["cells"] if cell["engine"] == "router"]
    shapes = list(dict.fromkeys((cell["services"], cell["replicas"], cell["active"]) for cell in cells))
    first = median(values(document, "requests_per_second", engine="router", **_shape(shapes[0])))
    rows = []
    for shape in shapes:
        where: dict[str, object] = {"engine": "router", **_shape(shape)}
        rates = values(document, "requests_per_second", **where)
        ready = median(values(document, "ready_seconds", **where))
        memory = [
            f"{median(values(document, f'{processes}_rss', **where)) / MIB:.0f} / "
            f"{median(values(document, f'{processes}_pss', **where)) / MIB:.0f}"
            for processes in ("main", "workers")
        ]
        row = [_shape_text(shape), spread(rates), f"{median(rates) / first:.2f}", f"{ready:.1f}", *memory]
        rows.append(row)
    header = ["services x replicas", "requests/s", "relative to the first row", "ready after, s"]
    header += ["supervisor RSS / PSS, MiB", "worker RSS / PSS, MiB"]
    text = f"32 connections, {rounds(document)} (lowest to highest):\n\n"
    return text + table(header, rows) + other_engines_growth(document, shapes)


def _shape(shape: tuple[int, int, int]) -> dict[str, object]:
    return dict(zip(("services", "replicas", "active"), shape, strict=True))


def _shape_text(shape: tuple[int, int, int]) -> str:
    services, replicas, active = shape
    return f"{services:,} x {replicas:,}" + (f", {active:,} active" if active != services else "")


def other_engines_growth(document: Document, shapes: list[tuple[int, int, int]]) -> str:
    """Return a table with the throughput of each engine for each shape, also relative to its first one."""
    names = engines(document)
    if names == ["router"]:
        return ""

    def rate(name: str, shape: tuple[int, int, int]) -> float:
        return median(values(document, "requests_per_second", engine=name, **_shape(shape)))

    rows = [
        [
            _shape_text(shape),
            *(f"{rate(name, shape):,.0f} ({rate(name, shape) / rate(name, shapes[0]):.2f})" for name in names),
        ]
        for shape in shapes
    ]
    header = ["services x replicas", *(ENGINES[name].title for name in names)]
    text = "\n\nThe same for other engines: requests/s, and in parentheses relative to the engine's own first row:\n\n"
    return text + table(header, rows) + "\n\n" + disturbance(document)


def profile(document: Document) -> str:
    """Return the section with the functions that have the most own time."""
    cells = sorted(document["cells"], key=lambda cell: -float(cell["own"]))[:TOP_FUNCTIONS]
    rows = [[f"`{cell['function']}`", f"{cell['own']:.1%}", f"{cell['cumulative']:.1%}"] for cell in cells]
    text = (
        f"{document['samples']:,} samples; {document['kernel_share']:.0%} of the worker's CPU time is kernel time.\n\n"
    )
    return text + table(["function", "own time", "cumulative"], rows)


def settings(document: Document) -> str:
    """Return the section with each engine's settings. The harness replaces ``@NAME@``."""
    blocks = []
    for name, files in document["settings"].items():
        for file, text in files.items():
            path = f"[`engines/{file}`](engines/{file})"
            if file.endswith(".py"):
                blocks.append(f"{ENGINES[name].title}: {path}")
            else:
                summary = f"<summary>{ENGINES[name].title}: engines/{file}</summary>"
                blocks.append(f"<details>{summary}\n\n```\n{text.strip()}\n```\n\n</details>")
    return "\n\n".join(blocks)


SECTIONS: Final[Mapping[str, Callable[[Document], str]]] = {
    "throughput": throughput,
    "latency": latency,
    "bodies": bodies,
    "growth": growth,
    "tokens": tokens,
    "tls": tls,
    "profile": profile,
}


def replace(readme: str, section: str, text: str) -> str:
    """Replace the text between the section's markers. Raises ValueError if README.md has no markers."""
    begin, end = f"<!-- {section}:begin -->", f"<!-- {section}:end -->"
    before, has_begin, rest = readme.partition(begin)
    _, has_end, after = rest.partition(end)
    if not has_begin or not has_end:
        raise ValueError(f"README.md has no {begin} … {end}")
    return f"{before}{begin}\n{text}\n{end}{after}"


def draw(document: Document, path: Path) -> None:
    """Draw bars of requests per second, grouped by connections, with whiskers from the lowest to the highest round."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    names = engines(document)
    connections = sorted({cell["connections"] for cell in document["cells"]})
    width = 0.8 / len(names)
    colors = {"router": "#d1495b", "compiled": "#8f1d2c", "bare": "#e8a5ad", "direct": "#bbbbbb"}
    others = iter(("#1f4e79", "#2e86ab", "#66a5c9", "#a9cce3"))
    figure, axes = pyplot.subplots(figsize=(10, 5))
    for index, name in enumerate(names):
        rates = [values(document, "requests_per_second", engine=name, connections=n) for n in connections]
        positions = [group + (index - (len(names) - 1) / 2) * width for group in range(len(connections))]
        medians = [median(rate) for rate in rates]
        whiskers = [
            [middle - min(rate) for middle, rate in zip(medians, rates, strict=True)],
            [max(rate) - middle for middle, rate in zip(medians, rates, strict=True)],
        ]
        color = colors.get(name) or next(others)
        axes.bar(positions, medians, width * 0.92, yerr=whiskers, capsize=2, color=color, label=ENGINES[name].title)
    axes.set_xticks(range(len(connections)), [f"{n} connections" for n in connections])
    axes.set_ylabel("requests/s")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_title("Small JSON POST through one worker or thread, same nginx behind all")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Run from the command line."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    arguments.add_argument(
        "--out", type=Path, default=DEFAULT_OUT, metavar="DIR", help="directory with the JSON results"
    )
    arguments.add_argument("--readme", type=Path, default=README, help="file with the markers")
    arguments.add_argument("--plot", type=Path, default=PLOT, help="plot to draw")
    parsed = arguments.parse_args()
    readme = parsed.readme.read_text()
    for section, write in SECTIONS.items():
        path = parsed.out / f"{section}.json"
        if not path.exists():
            print(f"{section}: no results in {parsed.out}, unchanged")
            continue
        document = json.loads(path.read_text())
        if document["quick"]:
            sys.exit(f"{path}: results of a --quick run cannot be reported")
        readme = replace(readme, section, f"{conditions(document)}\n\n{write(document)}")
        if section == "throughput":
            readme = replace(readme, "settings", settings(document))
            draw(document, parsed.plot)
        print(f"{section}: written")
    parsed.readme.write_text(readme)


if __name__ == "__main__":
    main()
