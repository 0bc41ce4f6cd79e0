"""Figures of other runs or methods, read from their ``scores.json``, for a table beside one's own."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...data_manifests.errors import UserError, private
from ...data_manifests.typed_json import load_json
from ..metrics.bootstrap import Estimate
from .metric_labels import METRICS

COMPARED = (
    "auroc", "auroc_fpr30_normalised", "average_precision", "aupro_fpr30", "aupro_fpr05", "dice_at_healthy_threshold",
    "best_dice_pooled", "lesion_sensitivity", "false_clusters_per_healthy_subject", "froc_score",
)  # fmt: skip
"""Columns of the table, as far as a run has them."""


@dataclass(frozen=True, eq=False)
class RunScores:
    """One run's figures.

    Attributes
    ----------
    name : str
    estimates : mapping from the names of `METRICS` to Estimate
    about : mapping
        What ``scores.json`` says of itself: space, mask, number of subjects.
    """

    name: str
    estimates: dict[str, Estimate]
    about: dict[str, Any]

    @property
    def ground(self) -> str:
        """Space, mask and number of subjects, in words: figures on different grounds do not compare."""
        told = [words.format(self.about[key]) for key, words in _GROUND.items() if key in self.about]
        return ", ".join(told) or "on what, it does not say"


_GROUND = {"subjects": "{} subjects", "space": "{} space", "mask": "{}"}


def scores_file(path: Path) -> Path:
    """The ``scores.json`` that a path means: itself, in the folder, or in the run's folder of scores."""
    if path.is_dir():
        inside = [path / "scores.json", path / "scores" / "scores.json"]
        return next((file for file in inside if file.is_file()), inside[-1])
    return path


def run_name(path: Path) -> str:
    """What a run is called: the folder it lies in."""
    folder = scores_file(path).resolve().parent
    return folder.parent.name if folder.name == "scores" else folder.name


def read_run(path: Path, name: str | None = None) -> RunScores:
    """Read the figures of a run.

    Parameters
    ----------
    path : Path
        A ``scores.json``, the folder that holds it, or the output folder of a run.
    name : str, optional
        `run_name` by default.

    Raises
    ------
    UserError
        No such file, or not one of figures.
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
            f"{private(path)}: holds no scores.json, expected the output folder of a run that was scored. Score it "
            "first."
        ) from error
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{private(file)}: not readable as the figures of a run ({type(error).__name__}). Score the run again."
        ) from error
    if not estimates:
        raise UserError(
            f"{private(file)}: holds none of the figures that voxout knows, expected at least one. Name another file."
        )
    return RunScores(name or run_name(path), estimates, about)
