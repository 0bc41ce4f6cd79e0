"""Training schedule, and split of the controls at a voxel."""

import math
from dataclasses import dataclass

import numpy as np

from ...data_manifests.errors import UserError, counted
from ..settings import ModelSettings

SUPPORT_SHARE = 0.5
"""Fraction of a voxel's controls that the one-class SVM is fitted on; the guidance loss is computed on the others."""
_EXPANDER_ONLY_SHARE = 0.5
"""Fraction of the guided steps with the expander only, before expander and compactor."""
_FEWEST = 3
"""Fewest controls at a voxel for guided steps: two to fit the one-class SVM on, and one held back."""
FEWEST_FOR_CONTRAST = 10
"""Fewest controls at a voxel for the contrast term: eight for mean and covariance, and two held back."""
_UNGUIDED_SHARE = 0.05
"""Fraction of the voxels that may be left without guidance, so that more controls are used at the others."""


@dataclass(frozen=True)
class Schedule:
    """Two phases of training: reconstruction of mixed patches, then guidance on co-located patches. Steps start at 0.

    Attributes
    ----------
    pretraining_steps, guided_steps : int
    expander_only_steps : int
        First guided steps, with the expander only.
    learning_rate, guided_learning_rate : float
        Peak learning rates; each phase has a linear warm-up over its first twentieth, then cosine decay.
    """

    pretraining_steps: int
    guided_steps: int
    expander_only_steps: int
    learning_rate: float
    guided_learning_rate: float

    @classmethod
    def from_settings(cls, settings: ModelSettings) -> "Schedule":
        """Compute the number of steps of each phase."""
        training = settings.training
        # Without a loss term on co-located patches, there are no guided steps.
        weights = settings.guidance.weight, training.siamese_weight, settings.contrast.weight
        guided = training.guided_steps if any(weight > 0 for weight in weights) else 0
        expander_only = round(_EXPANDER_ONLY_SHARE * guided)
        rates = training.learning_rate, training.guided_learning_rate
        return cls(training.pretraining_steps, guided, expander_only, *rates)

    @property
    def steps(self) -> int:
        """Number of steps of both phases."""
        return self.pretraining_steps + self.guided_steps

    def is_guided(self, step: int) -> bool:
        """Whether a step is in the second phase."""
        return step >= self.pretraining_steps

    def ends_phase(self, steps_done: int) -> bool:
        """Whether a phase is complete after this number of steps."""
        return steps_done in (self.pretraining_steps, self.steps)

    def routes(self, step: int) -> tuple[float, float]:
        """Weights (expander, compactor) of the two gradients of the guidance loss."""
        return (1.0, 0.0) if step < self.pretraining_steps + self.expander_only_steps else (1.0, 1.0)

    def rate(self, step: int) -> float:
        """Learning rate of a step."""
        if self.is_guided(step):
            step, steps, peak = step - self.pretraining_steps, self.guided_steps, self.guided_learning_rate
        else:
            steps, peak = self.pretraining_steps, self.learning_rate
        warm_up = max(1, steps // 20)
        if step < warm_up:
            return peak * (step + 1) / warm_up
        return peak * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


def support_size(n_controls: int) -> int:
    """m: number of controls of a voxel (at least 3) that the one-class SVM is fitted on; the loss is on the others."""
    return min(max(round(SUPPORT_SHARE * n_controls), 2), n_controls - 1)


def uses_contrast(settings: ModelSettings) -> bool:
    """Whether the guided steps have a contrast term."""
    return settings.contrast.weight > 0 and settings.training.guided_steps > 0


def guidance_nu(nu: float, n_controls: int) -> float:
    """Return nu of the guidance with this number of controls at a voxel (at least 3): raised to 1/m where it is less.

    With nu * m < 1, the one-class SVM would allow no outlier among the m controls that it is fitted on.
    """
    return max(nu, 1 / support_size(n_controls))


def fewest_controls(settings: ModelSettings) -> int:
    """Smallest number of controls at a voxel for guided steps; 0 without guided steps."""
    return _FEWEST if Schedule.from_settings(settings).guided_steps else 0


def require_enough_controls(n_train: int, settings: ModelSettings) -> None:
    """Check that there are enough controls for the guided steps.

    Raises
    ------
    UserError
        There are fewer than `fewest_controls`, or than `FEWEST_FOR_CONTRAST` for the contrast term; the message names
        the number that is needed.
    """
    if uses_contrast(settings) and n_train < FEWEST_FOR_CONTRAST:
        raise UserError(
            f"Contrast with edits: found {counted(n_train, 'training control')}, expected at least "
            f"{FEWEST_FOR_CONTRAST}. Add controls, or set models.contrast.weight to 0."
        )
    if n_train < (needed := fewest_controls(settings)):
        raise UserError(
            f"Guidance: found {counted(n_train, 'training control')}, expected at least {needed}. Add controls, or set "
            "models.guidance.weight and models.training.siamese_weight to 0."
        )


def controls_for(counts: np.ndarray, settings: ModelSettings) -> int:
    """Return the number of controls per voxel in a co-located batch.

    The smaller of `controls_per_voxel` and the number available at 95 % of the voxels, so that a control with an
    incomplete brain mask does not exclude voxels from guidance. At least `fewest_controls`, if half of the voxels have
    as many.

    Parameters
    ----------
    counts : ndarray of int, (P,)
        Number of controls whose brain contains each voxel.
    settings : ModelSettings

    Raises
    ------
    UserError
        Half of the voxels have fewer than `fewest_controls`.
    """
    needed, usual = fewest_controls(settings), int(np.median(counts))
    if usual < needed:
        raise UserError(
            f"Guidance: half of the voxels are in the brain masks of at most {usual} training controls, expected at "
            f"least {needed}. Check the figures of their preparation, or add controls."
        )
    at_nearly_all = int(np.quantile(counts, _UNGUIDED_SHARE, method="lower"))
    return min(settings.training.controls_per_voxel, max(at_nearly_all, needed))
