"""Metrics of reference runs, read from their ``scores.json`` for comparison in a report."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...data_manifests.errors import UserError, private
from ...data_manifests.typed_json import load_json
from ..metrics.bootstrap import Estimate
from .metric_labels import METRICS

COMPARED = (
    "auroc", "auroc_fpr30_normalised", "average_precision", "aupro_fpr30", "aupro_fpr05", "dice_at_healthy_threshold",
    "best_dice_pooled", "lesion_sensitivity", "false_clusters_per_healthy_subject", "froc_score", "ader_mean",
)  # fmt: skip
"""Columns of the table; metrics that no run has are omitted."""


@dataclass(frozen=True, eq=False)
class RunScores:
    """Metrics of one run.

    Attributes
    ----------
    name : str
    estimates : mapping from the names of `METRICS` to Estimate
    about : mapping
        Description from ``scores.json``: space, mask, number of subjects.
    """

    name: str
    estimates: dict[str, Estimate]
    about: dict[str, Any]

    @property
    def evaluated_on(self) -> str:
        """Number of subjects, space and mask; only metrics for which these agree are comparable."""
        parts = [text.format(self.about[key]) for key, text in _DESCRIPTION.items() if key in self.about]
        return ", ".join(parts) or "space and mask not stated"


_DESCRIPTION = {"subjects": "{} subjects", "space": "{} space", "mask": "{}"}


def scores_file(path: Path) -> Path:
    """Path of ``scores.json``: the path itself, in the folder, or in the ``scores`` folder of a run."""
    if path.is_dir():
        inside = [path / "scores.json", path / "scores" / "scores.json"]
        return next((file for file in inside if file.is_file()), inside[-1])
    return path


def run_name(path: Path) -> str:
    """Name of a run: that of its output folder."""
    folder = scores_file(path).resolve().parent
    return folder.parent.name if folder.name == "scores" else folder.name


def read_run(path: Path, name: str | None = None) -> RunScores:
    """Read the metrics of a run.

    Parameters
    ----------
    path : Path
        A ``scores.json``, its folder, or the output folder of a run.
    name : str, optional
        `run_name` by default.

    Raises
    ------
    UserError
        The file does not exist or holds no metrics.
    """
    file = scores_file(path)
    try:
        content = load_json(file)
        estimates = {
            metric: Estimate(*(values[field] for field in ("value", "n", "ci_low", "ci_high", "reason_undefined")))
            for metric, values in content.items()
            if metric in METRICS
        }
        about = dict(content.get("about", {}))
    except FileNotFoundError as error:
        raise UserError(
            f"{private(path)}: holds no scores.json, expected the output folder of a scored run. Score the run first."
        ) from error
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{private(file)}: not readable as the metrics of a run ({type(error).__name__}). Score the run again."
        ) from error
    if not estimates:
        raise UserError(f"{private(file)}: holds no metrics of voxout, expected at least one. Name another file.")
    return RunScores(name or run_name(path), estimates, about)
