"""What each training step does, as a function of its number, and how a location's controls are split."""

import math
from dataclasses import dataclass

import numpy as np

from ...data_manifests.errors import UserError
from ..settings import GuidanceSettings, ModelSettings

_GIVEN_UP = 0.05
"""The share of locations that may go without guidance, so that more controls are compared at the others."""


@dataclass(frozen=True)
class Schedule:
    """Two phases: reconstruction of mixed patches, then guidance on co-located ones. Step 0 is the first.

    Attributes
    ----------
    pretraining_steps, guided_steps : int
    expander_only_steps : int
        The first of the guided steps.
    learning_rate, guided_learning_rate : float
        Peaks; each phase warms up over its first twentieth and falls off as a half cosine.
    """

    pretraining_steps: int
    guided_steps: int
    expander_only_steps: int
    learning_rate: float
    guided_learning_rate: float

    @classmethod
    def from_settings(cls, settings: ModelSettings) -> "Schedule":
        training, guidance = settings.training, settings.guidance
        # Without a term that needs co-located patches there is nothing for guided steps to do.
        guided = training.guided_steps if guidance.weight > 0 or training.siamese_weight > 0 else 0
        expander_only = round(guidance.expander_only_share * guided)
        rates = training.learning_rate, training.guided_learning_rate
        return cls(training.pretraining_steps, guided, expander_only, *rates)

    @property
    def steps(self) -> int:
        return self.pretraining_steps + self.guided_steps

    def is_guided(self, step: int) -> bool:
        return step >= self.pretraining_steps

    def ends_phase(self, steps_done: int) -> bool:
        return steps_done in (self.pretraining_steps, self.steps)

    def routes(self, step: int) -> tuple[float, float]:
        """Weights (expander, compactor) of the guidance loss's two gradients."""
        return (1.0, 0.0) if step < self.pretraining_steps + self.expander_only_steps else (1.0, 1.0)

    def rate(self, step: int) -> float:
        """Learning rate."""
        if self.is_guided(step):
            step, steps, peak = step - self.pretraining_steps, self.guided_steps, self.guided_learning_rate
        else:
            steps, peak = self.pretraining_steps, self.learning_rate
        warm_up = max(1, steps // 20)
        if step < warm_up:
            return peak * (step + 1) / warm_up
        return peak * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


def support_size(n_controls: int, guidance: GuidanceSettings) -> int:
    """m: how many of a location's controls (at least 3) solve the dual; the rest carry the loss."""
    return min(max(round(guidance.support_share * n_controls), 2), n_controls - 1)


def fewest_controls(settings: ModelSettings) -> int:
    """Of controls at a location, so that the guided steps, where there are any, can split them, and nu * m >= 1.

    With less than that, no control may lie outside its boundary, whatever nu says.
    """
    guidance = settings.guidance
    if not Schedule.from_settings(settings).guided_steps:
        return 0
    if guidance.weight == 0:
        return 3
    # From here on by the formula, so that a tiny nu is answered at once; then to the last one by trying.
    needed = max(3, math.floor((1 / guidance.nu - 1) / guidance.support_share))
    while guidance.nu * support_size(needed, guidance) < 1 - 1e-9:
        needed += 1
    return needed


def require_enough_controls(n_train: int, settings: ModelSettings) -> None:
    """Judge the number of controls for the guided steps.

    Raises
    ------
    UserError
        Fewer than `fewest_controls`; the sentence names the number that is needed.
    """
    guidance, limit, needed = settings.guidance, settings.training.controls_per_voxel, fewest_controls(settings)
    if min(n_train, limit) >= needed:
        return
    found, remedy = f"{n_train} training controls", "Add controls"
    if n_train > limit:
        found, remedy = f"models.training.controls_per_voxel = {limit}", "Raise it"
    raise UserError(
        f"Guidance with nu = {guidance.nu:g} and support_share = {guidance.support_share:g}: found {found}, expected "
        f"at least {needed}, so that one of the controls that solve the one-class SVM may lie outside. {remedy}, raise "
        "models.guidance.nu, or set models.guidance.weight and models.training.siamese_weight to 0."
    )


def controls_for(counts: np.ndarray, settings: ModelSettings) -> int:
    """How many controls a co-located batch takes at a location.

    As many as `controls_per_voxel`, or as nineteen of twenty locations have: one control that lacks a part of its
    brain does not cost that part its guidance. More only where no fewer will do, and half of the locations have them.

    Parameters
    ----------
    counts : ndarray of int, (P,)
        Controls with brain at each location.
    settings : ModelSettings

    Raises
    ------
    UserError
        Half of the locations have fewer than `fewest_controls`.
    """
    needed, usual = fewest_controls(settings), int(np.median(counts))
    if usual < needed:
        raise UserError(
            f"Guidance: at half of the brain's locations, at most {usual} of the training controls have brain, "
            f"expected at least {needed}. Look at the pictures of their preparation, or add controls."
        )
    at_nearly_all = int(np.quantile(counts, _GIVEN_UP, method="lower"))
    return min(settings.training.controls_per_voxel, max(at_nearly_all, needed))
