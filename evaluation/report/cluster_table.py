"""Findings as a table: one row per cluster or part of one, its peak in MNI space, and what lies there."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from ...data_manifests.csv_file import write_csv
from ...data_manifests.errors import counted
from ..metrics.clusters import Cluster
from .anatomy import Place

COLUMNS = (
    "subject", "rank", "volume_mm3", "peak_score", "mean_score", "p_value", "smallest_p", "x_mni_mm", "y_mni_mm",
    "z_mni_mm", "side", "region", "tissue", "in_lesion_mask", "lobe", "regions", "part_of", "cluster_mm3", "flags",
    "x_native_mm", "y_native_mm", "z_native_mm",
)  # fmt: skip

_PEAK = "Peak of the finding, "
LABEL_COLUMNS: dict[str, tuple[str, str | None]] = {
    **{f"{axis}_mm": (f"{_PEAK}{axis} in the space of the image (RAS)", "mm") for axis in "xyz"},
    "volume_mm3": ("Volume of the finding", "mm^3"),
    "peak_score": ("Highest z-score", None),
    "mean_score": ("Mean z-score", None),
    "p_value": ("Share of healthy brains with a cluster at least as large as the whole cluster", None),
    "smallest_p": ("Smallest p-value that the number of healthy brains allows", None),
    **{f"{axis}_mni_mm": (f"{_PEAK}{axis} on the template (RAS)", "mm") for axis in "xyz"},
    "side": ("Side of the peak", None),
    "region": ("Region of the atlas at the peak", None),
    "tissue": ("Tissue at the peak", None),
    "lobe": ("Lobe at the peak", None),
    "regions": ("Shares of the finding in each region", None),
    "part_of": ("Numbers of all findings of the same connected cluster", None),
    "cluster_mm3": ("Volume of the whole connected cluster", "mm^3"),
    "flags": ("Frequent harmless causes that the finding may have", None),
    **{f"{axis}_native_mm": (f"{_PEAK}{axis} in the space of the subject's T1w (RAS)", "mm") for axis in "xyz"},
}
"""Description and unit of the columns of `label_table` beside those of BIDS, in their order."""


def cluster_row(
    key: str,
    cluster: Cluster,
    mni_mm: Sequence[float],
    place: Place,
    native_mm: Sequence[float] | None = None,
) -> dict[str, object]:
    """Return one row, by column.

    Parameters
    ----------
    key : str
        Of the subject.
    cluster : Cluster
    mni_mm : sequence of float, (3,)
        Its peak.
    place : Place
    native_mm : sequence of float, (3,), optional
        Its peak in the space of the scan.
    """
    values = (
        key, cluster.rank, cluster.volume_mm3, cluster.peak_score, cluster.mean_score, cluster.p_value,
        cluster.smallest_p, *mni_mm, place.side, place.region, place.tissue, cluster.in_lesion, place.lobe,
        place.shares_text, part_of(cluster), cluster.whole_mm3, place.flags_text or None,
        *(native_mm or (None, None, None)),
    )  # fmt: skip
    return dict(zip(COLUMNS, values, strict=True))


def read_clusters(path: Path) -> list[dict[str, str]]:
    """Read the rows of a subject's cluster table (CSV)."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def part_of(cluster: Cluster) -> str | None:
    """Return the ranks of all parts of the connected cluster that it is a part of: "1+3"; None if it is no part."""
    return "+".join(map(str, cluster.parts)) or None


def count_clusters(rows: Sequence[Mapping[str, object]]) -> int:
    """Return the number of connected clusters of which these are the findings."""
    wholes = [row["part_of"] for row in rows if row.get("part_of")]
    return len(rows) - len(wholes) + len(set(wholes))


def smallest_p_words(smallest_p: float) -> tuple[str, str]:
    """Return the smallest possible p-value, and why it is no smaller: "1/11", "the smallest that 10 controls allow"."""
    brains = round(1 / smallest_p)
    return f"1/{brains}", f"the smallest that {counted(brains - 1, 'control')} allow{'s' if brains == 2 else ''}"


def where(row: Mapping[str, object]) -> str:
    """Return the place of a cluster in words, from its row or that of a CSV table: "left precuneus"."""
    return f"{row['side']} {row['region'] or row['tissue']}"


def label_table(path: Path, clusters: Sequence[Cluster], rows: Sequence[Mapping[str, object]]) -> Path:
    """Write the table of an image of numbered clusters, with the columns that BIDS asks for.

    Parameters
    ----------
    path : Path
        Ends in .tsv.
    clusters : sequence of Cluster
    rows : sequence of mapping
        Of each cluster (see `cluster_row`).
    """
    columns = list(LABEL_COLUMNS)[3:]
    lines = (
        [cluster.rank, where(row), *(f"{mm:.7g}" for mm in cluster.peak_mm), *(_cell(row[name]) for name in columns)]
        for cluster, row in zip(clusters, rows, strict=True)
    )
    write_csv(path, ("index", "name", *LABEL_COLUMNS), lines, separator="\t")
    return path


def _cell(value: object) -> object:
    if value is None:
        return "n/a"
    return f"{value:.7g}" if isinstance(value, float) else value
