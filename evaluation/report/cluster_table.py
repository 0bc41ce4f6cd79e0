"""Suspicious clusters as a table: one row per cluster, its peak in MNI space, and what lies there."""

from collections.abc import Sequence

from ..metrics.clusters import Cluster
from .anatomy import Place

COLUMNS = (
    "subject", "rank", "volume_mm3", "peak_score", "mean_score", "p_value", "x_mni_mm", "y_mni_mm", "z_mni_mm", "side",
    "region", "tissue", "in_lesion_mask", "lobe", "regions",
)  # fmt: skip


def cluster_row(key: str, cluster: Cluster, mni_mm: Sequence[float], place: Place) -> dict[str, object]:
    """Return one row, by column.

    Parameters
    ----------
    key : str
        Of the subject.
    cluster : Cluster
    mni_mm : sequence of float, (3,)
        Its peak.
    place : Place
    """
    values = (
        key, cluster.rank, cluster.volume_mm3, cluster.peak_score, cluster.mean_score, cluster.p_value, *mni_mm,
        place.side, place.region, place.tissue, cluster.in_lesion, place.lobe, place.shares_text,
    )  # fmt: skip
    return dict(zip(COLUMNS, values, strict=True))
