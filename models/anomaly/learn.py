"""Learning of a combination of scorers from labelled patients, and its cross-validation over them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..labels.fusion import Fusion
from ..labels.head_training import train_head
from ..labels.labelled_voxels import LabelledVoxels
from ..labels.weights import candidates, choose, table_of
from .calibration import folds_of, z_from_neg_log10_p
from .control_nulls import ControlNulls
from .ensemble import Ensemble, ScorerOutputs, combined_by_member

FEWEST_PATIENTS = 2
"""Labelled participants: what is learnt is tested on a patient that was left out."""
_FOLDS = 5


@dataclass(frozen=True)
class LabelSettings:
    """How a combination is learnt.

    Attributes
    ----------
    head : bool
        Whether a head is trained, beside the weights.
    variance_weight : float
        See `train_head`.
    """

    head: bool = False
    variance_weight: float = 0.0


@dataclass(frozen=True, eq=False)
class LabelledPatient:
    """A labelled patient.

    Attributes
    ----------
    participant : str
    outputs : callable
        Reads what the scorers have put out.
    lesion : ndarray of bool, (P,)
    """

    participant: str
    outputs: Callable[[], ScorerOutputs]
    lesion: np.ndarray


class Learner:
    """Learns combinations of the scorers of an ensemble on subsets of labelled patients.

    Parameters
    ----------
    ensemble : Ensemble
    patients : sequence of LabelledPatient
    settings : LabelSettings
    seed : int
    """

    def __init__(self, ensemble: Ensemble, patients: Sequence[LabelledPatient], settings: LabelSettings, seed: int):
        self.ensemble, self.patients, self.settings, self.seed = ensemble, patients, settings, seed
        self.participants = [patient.participant for patient in patients]
        self._names = [scorer.name for scorer in ensemble.scorers]
        self._members = [scorer.member for scorer in ensemble.scorers]
        random = np.random.default_rng(seed)
        self._voxels = [self._draw(patient, random) for patient in patients]
        self._weights = candidates(self._groups(), seed)
        self._table = table_of(self._voxels, self._weights, self._combine)

    def fusion(self, used: Sequence[int] | np.ndarray) -> Fusion:
        """Learn from the patients with these indices."""
        own = [self.participants[index] for index in used]
        weights = self._weights[choose(self._table[:, used], own, self._weights)]
        head = None
        if self.settings.head:
            voxels = [self._voxels[index] for index in used]
            head = train_head(
                voxels, weights, self._combine, variance_weight=self.settings.variance_weight, seed=self.seed
            )
        return Fusion(tuple(self._names), weights, len(set(own)), head)

    def cross_validated(self, controls: ControlNulls) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
        """Map each patient with a combination that was learnt without its participant.

        Yields
        ------
        index : int
        before, after : ndarray, (P,), float32
            z-scores of the ensemble as it is, and with what was learnt; 0 where not scored.
        inside : ndarray of bool, (P,)
            Scored voxels.
        """
        every = np.arange(len(self.patients))
        for fold in folds_of(self.participants, _FOLDS, self.seed):
            learnt, _ = controls.calibrated(self.ensemble, self.fusion(np.setdiff1d(every, fold)))
            adapted = replace(self.ensemble, learnt=learnt)
            for index in fold:
                outputs = self.patients[index].outputs()
                before, after = (_z(ensemble, outputs) for ensemble in (self.ensemble, adapted))
                yield int(index), before, after, outputs.inside

    def _draw(self, patient: LabelledPatient, random: np.random.Generator) -> LabelledVoxels:
        outputs = patient.outputs()
        order = self.ensemble.combine(outputs)[0]
        latents = outputs.latents if self.settings.head else None
        return LabelledVoxels.draw(
            patient.participant, outputs.neg_log10_ps, latents, patient.lesion, outputs.inside, order, random
        )

    def _combine(self, weighted: np.ndarray) -> np.ndarray:
        inside = np.ones(weighted.shape[1], bool)
        return combined_by_member(weighted, self.ensemble.scorers, inside, self.ensemble.p_norm).mean(axis=0)

    def _groups(self) -> list[int]:
        """Return the number of each scorer; the same for a scorer on different encoders."""
        numbers: dict[str, int] = {}
        groups = []
        for name, member in zip(self._names, self._members, strict=True):
            base = name.removesuffix(f"_{member + 1}") if member else name
            groups.append(numbers.setdefault(base, len(numbers)))
        return groups


def _z(ensemble: Ensemble, outputs: ScorerOutputs) -> np.ndarray:
    values = ensemble.combine(outputs)[0]
    return np.where(outputs.inside, z_from_neg_log10_p(values), 0).astype(np.float32)
