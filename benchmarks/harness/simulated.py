"""Output of simulations: a table in the terminal, and a plot with one panel over time for each load."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows as aligned columns. The first row has the headings, the first column the names."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, *rest in rows:
        cells = (cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))
        print(name.ljust(widths[0]), *cells, sep="  ")


@contextmanager
def panels(count: int, path: Path, *, inches: float) -> Iterator[Sequence[Axes]]:
    """Yield `count` axes below each other, each `inches` high, with minutes on the common horizontal axis.

    The plot is written to `path` when the block ends.
    """
    figure, grid = plt.subplots(count, 1, figsize=(11, inches * count), layout="constrained", squeeze=False)
    axes = list(grid[:, 0])
    yield axes
    for axis in axes:
        axis.margins(x=0)
    axes[0].legend(loc="upper right", ncols=4, fontsize=8, frameon=False)
    axes[-1].set_xlabel("minutes")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
