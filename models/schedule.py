"""What each training step does, as a function of its number, and how a location's controls are split."""

import math
from dataclasses import dataclass

from ..data_manifests.errors import UserError
from .settings import GuidanceSettings, ModelSettings


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
    def of(cls, settings: ModelSettings) -> "Schedule":
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


def require_enough_controls(n_train: int, settings: ModelSettings) -> None:
    """Judge the number of controls for the guided steps, where there are any.

    Raises
    ------
    UserError
        A location's controls cannot be split, or nu * m < 1: then no control may lie outside its boundary, whatever
        nu says. The sentence names the number that is needed.
    """
    if not Schedule.of(settings).guided_steps:
        return
    guidance, limit = settings.guidance, settings.training.controls_per_location

    def enough(n: int) -> bool:
        return n >= 3 and (guidance.weight == 0 or guidance.nu * support_size(n, guidance) >= 1 - 1e-9)

    if enough(min(n_train, limit)):
        return
    # From here on by the formula, so that a tiny nu is answered at once; then to the last one by trying.
    needed = max(3, math.floor((1 / guidance.nu - 1) / guidance.support_share)) if guidance.weight > 0 else 3
    while not enough(needed):
        needed += 1
    found, remedy = f"{n_train} training controls", "Add controls"
    if n_train > limit:
        found, remedy = f"models.training.controls_per_location = {limit}", "Raise it"
    raise UserError(
        f"Guidance with nu = {guidance.nu:g} and support_share = {guidance.support_share:g}: found {found}, expected "
        f"at least {needed}, so that one of the controls that solve the one-class SVM may lie outside. {remedy}, raise "
        "models.guidance.nu, or set models.guidance.weight and models.training.siamese_weight to 0."
    )
