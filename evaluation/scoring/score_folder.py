"""Stored scores of a cohort: the subjects and the settings they were scored with."""

from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from ...data_manifests.errors import UserError, private
from ...data_manifests.typed_json import load_json
from ..settings import EvaluationSettings
from .subject_scores import SubjectScores

SUBJECTS = "subjects"


@dataclass(frozen=True, eq=False)
class ScoreFolder:
    """Folder written by `voxout evaluate` or by a run.

    Attributes
    ----------
    path : Path
    subjects : tuple of SubjectScores
    settings : EvaluationSettings
    space, mask : str
    left_out : tuple of str
        Subjects that could not be scored.
    """

    path: Path
    subjects: tuple[SubjectScores, ...]
    settings: EvaluationSettings
    space: str
    mask: str
    left_out: tuple[str, ...]

    @property
    def file(self) -> Path:
        """Its ``scores.json``."""
        return (_folder_in(self.path) or self.path) / "scores.json"

    @classmethod
    def open(cls, path: Path) -> "ScoreFolder":
        """Open a folder of scores, or the folder ``scores`` of a run.

        Raises
        ------
        UserError
            The folder does not exist, holds no scores, or holds damaged scores.
        """
        folder = _folder_in(path)
        if folder is None:
            raise UserError(
                f"{private(path)}: holds no scores, expected a folder written by `voxout evaluate`. Check the path."
            )
        try:
            about = load_json(folder / "scores.json")["about"]
            # Names that are no longer settings do not matter: all intervals are computed again.
            known = {name: v for name, v in about["settings"].items() if name not in EvaluationSettings.removed}
            settings = EvaluationSettings(**known)
            description = str(about["space"]), str(about["mask"]), tuple(about["subjects_left_out"])
        except (ValueError, KeyError, TypeError, ValidationError) as error:
            raise UserError(
                f"{private(folder / 'scores.json')}: not readable as scores ({type(error).__name__}). Score the maps "
                "again."
            ) from error
        subjects = tuple(SubjectScores.load(file) for file in sorted((folder / SUBJECTS).glob("[!.]*.npz")))
        if not subjects:
            raise UserError(f"{private(folder / SUBJECTS)}: holds no subjects. Score the maps again.")
        return cls(path, subjects, settings, *description)


def _folder_in(path: Path) -> Path | None:
    return next((folder for folder in (path, path / "scores") if (folder / "scores.json").is_file()), None)
