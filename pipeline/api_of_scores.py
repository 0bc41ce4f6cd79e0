"""The functions of ``import voxout`` on maps of any method: evaluate them, and compare methods."""

import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..data_manifests.errors import plain_errors
from ..data_manifests.user_paths import given_path
from .config.changed_settings import Settings, as_overrides
from .config.config import load_config
from .workflow.console import Console

if TYPE_CHECKING:
    from ..evaluation.scoring.compare import Comparison
    from ..evaluation.scoring.score_cohort import CohortScores


def evaluate(
    maps: str | Path,
    masks: str | Path | None = None,
    *,
    brain_masks: str | Path | None = None,
    cohort: str | Path | None = None,
    healthy: Sequence[str] = (),
    out: str | Path | None = None,
    settings: Settings = (),
    seed: int | None = None,
    jobs: int | None = None,
    verbose: bool = False,
) -> "CohortScores":
    """Evaluate anomaly maps of any method against lesion masks.

    Parameters
    ----------
    maps, masks, brain_masks : str or Path
        Folders, or paths with ``{id}`` in place of the subject's id. Files of a subject are matched by id. Higher
        scores are more anomalous. Without `brain_masks` every voxel of an image counts.
    cohort : str or Path, optional
        A CSV file with `subject_id`, `group`, `site` and `age`.
    healthy : sequence of str
        Ids, or patterns of ids, of healthy subjects: they set the threshold and need no lesion mask.
    out : str or Path, optional
        Folder for ``scores.json`` and the tables; without it nothing is kept.
    settings : mapping or sequence of str, optional
        Settings of ``evaluation``.
    seed : int, optional
        Of the bootstrap.
    jobs : int, optional
        Threads; one per core by default.
    verbose : bool
        Print a line per subject that failed or was left out.

    Returns
    -------
    CohortScores
        ``scores.estimates["auroc"]`` is an estimate with its interval.

    Raises
    ------
    UserError
        Folders whose files cannot be matched, or no map that could be scored.
    """
    from .tools.score_maps import MapFolders, match_subjects, require_own_folder, score_into

    with plain_errors():
        given = {"maps": maps, "masks": masks, "brain_masks": brain_masks, "cohort": cohort, "out": out}
        for what, path in given.items():
            if path is not None:
                given_path(path, what)
        config = load_config(overrides=as_overrides(settings), seed=seed)
        folders = MapFolders(
            str(maps),
            None if masks is None else str(masks),
            None if brain_masks is None else str(brain_masks),
            None if cohort is None else Path(cohort),
            tuple(healthy),
        )
        matched = match_subjects(folders)
        temporary = tempfile.TemporaryDirectory(prefix="voxout-") if out is None else None
        place = Path(temporary.name if temporary is not None else str(out))
        require_own_folder(place, folders)
        console = Console(None, verbosity=0 if verbose else -1)
        scores, _ = score_into(
            matched,
            config.evaluation,
            place,
            console,
            jobs=jobs,
            seed=config.seed,
            page=out is not None,
            command="voxout.evaluate",
        )
        if temporary is not None:
            # The curves of the subjects stay in files, which live as long as the scores.
            weakref.finalize(scores, temporary.cleanup)
        return scores


def compare(*folders: str | Path, seed: int = 0) -> "Comparison":
    """Compare the scores of two or more methods on the same subjects.

    Parameters
    ----------
    folders : str or Path
        Folders that `evaluate` or ``voxout evaluate`` wrote, or the output folders of runs.
    seed : int
        Of the bootstrap.

    Returns
    -------
    Comparison
        Paired differences with bootstrap intervals.

    Raises
    ------
    UserError
        A folder without scores, or scores that cannot be compared.
    """
    from ..evaluation.scoring.compare import compare as compare_scores
    from ..evaluation.scoring.score_folder import ScoreFolder

    with plain_errors():
        paths = [given_path(folder, "folder") for folder in folders]
        return compare_scores([ScoreFolder.open(path) for path in paths], seed=seed)
