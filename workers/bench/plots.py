"""Plots of results against the peers, as SVG that needs nothing from elsewhere."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pygal
from pygal.style import Style

from workers.bench.results import Run

# The library leaves a finder for plugins behind that Python no longer understands, and warns about at every later import.
sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__module__ != "pygal"]

_STYLE = Style(
    font_family="sans-serif",
    background="white",
    plot_background="white",
    title_font_size=18,
    label_font_size=13,
    major_label_font_size=13,
    value_font_size=13,
    legend_font_size=13,
    value_colors=("black",) * 3,
    colors=("#0b6e4f", "#f2a541", "#b23a48"),
)


def write_plots(results: Run, folder: Path) -> list[Path]:
    """Write what there is a figure for; the files, in the order of the results.

    `throughput.svg`: deliveries a second of each backlog, one bar for each system. `latency.svg`: commit to receive at each
    steady rate, p50, p95 and p99. The folder is made when it is missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    backlogs = [result for result in results if result["scenario"].startswith("backlog")]
    steady = [result for result in results if result["scenario"].startswith("steady")]
    written = []
    if backlogs:
        chart = _chart("Delivered per second (higher is better)", len(backlogs))
        chart.x_labels = [_label(result) for result in reversed(backlogs)]
        chart.add("deliveries a second", [round(result["deliveries_per_s"]) for result in reversed(backlogs)])
        written.append(_write(chart, folder / "throughput.svg"))
    if steady:
        chart = _chart("Milliseconds from commit to receive (lower is better)", 3 * len(steady))
        chart.x_labels = [_label(result) for result in reversed(steady)]
        for percentile in ("p50", "p95", "p99"):
            chart.add(percentile, [result[f"{percentile}_ms"] for result in reversed(steady)])
        written.append(_write(chart, folder / "latency.svg"))
    return written


def _chart(title: str, bars: int) -> Any:
    return pygal.HorizontalBar(
        title=title,
        style=_STYLE,
        js=(),  # the library's own script would be fetched from elsewhere
        print_values=True,
        print_values_position="top",
        legend_at_bottom=True,
        show_x_guides=False,
        show_y_guides=False,
        width=860,
        height=170 + 34 * bars,
    )


def _label(result: dict[str, Any]) -> str:
    return f"{result['scenario']}, {result['system']}"


def _write(chart: Any, file: Path) -> Path:
    # Without the comments, which name the library's site, and without its settings for a script.
    file.write_bytes(re.sub(rb"<!--.*?-->|<script.*?</script>", b"", chart.render(), flags=re.DOTALL))
    return file
