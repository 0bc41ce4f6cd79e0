"""Raw scores of one method: of the controls by cross-validation, of edited copies of them, and of other subjects.

The method is fitted once without each fold of the controls. Controls and their edited copies are scored by the fit
without them, other subjects by all fits: their score is the mean, as in voxout's own scorer `learned`. Every map is
kept on disk, so that an interrupted comparison goes on.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from ...data_manifests.atomic_write import atomic_write
from ...data_manifests.cohort.subject import participant_of_key
from ...data_manifests.errors import Failure, MachineError, SubjectError, UserError
from ..anomaly.calibration import folds_of, require_enough_participants
from ..edits.edited_controls import EditedControls
from ..settings import FOLDS, FamilyName
from .registry import make
from .rival import Rival, checked_scores, require_varying
from .scans import Controls, Scan, require_controls

STAGE = "rivals"
_NULL, _EDITED, _OTHERS = "controls", "edited", "subjects"
_COPY_TO_CHOOSE_ON = 10_000
"""Number of the edited copy of each control that a form is chosen on; no network learns from it."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class CrossFit:
    """Cross-validated fit of one method.

    Attributes
    ----------
    name : str
        In the registry.
    controls : Controls
        All training controls; their folder holds the maps, and in ``fold-<n>`` what a fit keeps.
    others : mapping from key to callable
        Reads the scan of each further subject.
    edited : tuple of str
        Controls of which an edited copy is scored.
    families : tuple of str
        Of the edits.
    failures : list of Failure
        Subjects that the method failed on.
    """

    name: str
    controls: Controls
    others: Mapping[str, Callable[[], Scan]]
    edited: tuple[str, ...] = ()
    families: Sequence[FamilyName] = ()
    failures: list[Failure] = field(default_factory=list)

    @property
    def folds(self) -> list[np.ndarray]:
        """Indices of the controls of each fold: those of voxout's scorers, fewer for a method that is costly to fit."""
        number = self.controls.preset.folds if getattr(make(self.name), "is_costly", False) else FOLDS
        return folds_of([participant_of_key(key) for key in self.controls.keys], number, self.controls.seed)

    def run(self, progress: Progress = lambda done, total: None) -> None:
        """Fit the method on all but each fold, and score everybody that is not scored yet.

        Raises
        ------
        UserError
            There are too few controls, the method cannot be fitted, or its maps are constant.
        """
        keys = self.controls.keys
        require_enough_participants(keys)
        folds = self.folds
        fewest = int(getattr(make(self.name), "fewest_controls", 0))
        # Said with the number of all controls, of which a fit gets the share that is not in its fold.
        needed = -(-fewest * len(folds) // (len(folds) - 1))
        require_controls(self.name, len(keys), needed if fewest else 0)
        total = sum(1 for _ in self._work(folds))
        done = 0
        for number, fold in enumerate(folds):
            rival: Rival | None = None
            for key, path, read in self._work_of(number, fold):
                if not path.is_file():
                    rival = rival or self._fitted(number, fold)
                    self._score(rival, key, path, read)
                done += 1
                progress(done, total)
            null = [self._read(_NULL, keys[index]) for index in fold]
            require_varying(self.name, [values for values in null if values is not None])

    def null(self) -> tuple[tuple[str, ...], np.ndarray, list[np.ndarray]]:
        """Raw scores of the controls from the fits without them.

        Returns
        -------
        tuple of str
            The controls that could be scored.
        ndarray, (S, P), float32
        list of ndarray of int
            Their folds.

        Raises
        ------
        UserError
            Half of the controls or more could not be scored.
        """
        found = {key: values for key in self.controls.keys if (values := self._read(_NULL, key)) is not None}
        if 2 * len(found) <= len(self.controls):
            reasons = {failure.reason for failure in self.failures}
            raise UserError(
                f"{self.name}: failed on {len(self.controls) - len(found)} of {len(self.controls)} controls, expected "
                f"scores of most of them. {min(reasons, default='Run the same command again.')}"
            )
        place = {key: index for index, key in enumerate(found)}
        keys = self.controls.keys
        folds = [np.array([place[keys[i]] for i in fold if keys[i] in place], np.int64) for fold in self.folds]
        return tuple(found), np.stack([*found.values()]), [fold for fold in folds if len(fold)]

    def edited_copies(self) -> dict[str, np.ndarray]:
        """Raw scores (P,) of the edited copies, by control, from the fit without it."""
        found = ((key, self._read(_EDITED, key)) for key in self.edited)
        return {key: values for key, values in found if values is not None}

    def scores(self, key: str) -> np.ndarray | None:
        """Raw scores (P,) of another subject: the mean over the fits; None if the method failed on it."""
        parts = [self._read(f"{_OTHERS}-{number + 1}", key) for number in range(len(self.folds))]
        known = [part for part in parts if part is not None]
        return np.asarray(np.mean(known, axis=0, dtype=np.float64), np.float32) if len(known) == len(parts) else None

    def copies(self) -> EditedControls:
        """Edited copies of the controls."""
        c = self.controls
        return EditedControls(c.store, c.keys, c.channels, self.families, c.seed)

    # -- work ----------------------------------------------------------------------------------------------------
    def _work(self, folds: Sequence[np.ndarray]) -> Iterable[tuple[str, Path, Callable[[], Scan]]]:
        return (item for number, fold in enumerate(folds) for item in self._work_of(number, fold))

    def _work_of(self, number: int, fold: np.ndarray) -> Iterable[tuple[str, Path, Callable[[], Scan]]]:
        """Yield key, file and scan of everybody that the fit without a fold scores."""
        for index in fold:
            key = self.controls.keys[index]
            yield key, self._path(_NULL, key), partial(self.controls.scan, key)
            if key in self.edited:
                yield key, self._path(_EDITED, key), partial(self._edited_copy, int(index))
        for key, read in self.others.items():
            yield key, self._path(f"{_OTHERS}-{number + 1}", key), read

    def _edited_copy(self, index: int) -> Scan:
        channels, _ = self.copies().draw(self.copies().unedited(index), _COPY_TO_CHOOSE_ON)
        key = self.controls.keys[index]
        return self.controls.as_scan(key, channels, self.controls.inside(key))

    def truth_of_copy(self, key: str) -> np.ndarray:
        """Voxels (P,) of the edited copy of a control: 1 where it is edited, 0 elsewhere, -1 at the rim of an edit."""
        copies = self.copies()
        _, drawn = copies.draw(copies.unedited(self.controls.keys.index(key)), _COPY_TO_CHOOSE_ON)
        numbers = self.controls.mask.transform(drawn.numbers)
        shams = [number for number, family in enumerate(drawn.families, 1) if family not in self.families]
        return np.where(np.isin(numbers, shams), 0, np.sign(numbers)).astype(np.int8)

    def _fitted(self, number: int, fold: np.ndarray) -> Rival:
        rival = make(self.name)
        others = [key for index, key in enumerate(self.controls.keys) if index not in set(fold.tolist())]
        controls = self.controls.only(others, self.controls.folder / f"fold-{number + 1}")
        controls.folder.mkdir(parents=True, exist_ok=True)
        try:
            rival.fit(controls)
        except (UserError, OSError, MemoryError):
            raise
        except Exception as error:  # foreign code, which may fail in any way
            raise UserError(
                f"{self.name}: could not be fitted ({type(error).__name__}: {error}). Correct the method, or leave it "
                "out."
            ) from error
        return rival

    def _score(self, rival: Rival, key: str, path: Path, read: Callable[[], Scan]) -> None:
        """Score one scan and write its map; a failure is listed, and the others go on."""
        try:
            scan = read()
        except UserError as error:
            self._failed(key, error)
            return
        try:
            volume = checked_scores(self.name, scan, rival.score(scan))
        except MachineError:
            raise
        except UserError as error:
            self._failed(key, error)
            return
        except (OSError, MemoryError):
            raise
        except Exception as error:  # noqa: BLE001 (foreign code, which may fail in any way)
            self._failed(key, SubjectError(f"{self.name}: failed on {key} ({type(error).__name__}: {error})."))
            return
        with atomic_write(path) as temporary:
            np.save(temporary, self.controls.mask.transform(volume), allow_pickle=False)

    def _failed(self, key: str, error: UserError) -> None:
        if not any(failure.key == key for failure in self.failures):
            self.failures.append(Failure(key, STAGE, str(error)))

    def _path(self, kind: str, key: str) -> Path:
        return self.controls.folder / "maps" / kind / f"{key}.npy"

    def _read(self, kind: str, key: str) -> np.ndarray | None:
        path = self._path(kind, key)
        return np.load(path, allow_pickle=False) if path.is_file() else None
