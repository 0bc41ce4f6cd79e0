"""Whether a subject was prepared well.

One head registered badly can spoil a cohort's figures more than any choice of method: every subject is judged. Numbers
outside the limits of the settings warn, or fail where nothing that follows could be trusted.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ...data_manifests.atomic_write import atomic_write
from ...data_manifests.errors import UserError, private
from ...data_manifests.images.volume import Volume
from ...data_manifests.typed_json import load_json
from ..brain_extraction.extract import BrainExtraction
from ..registration.template import Template
from ..settings import PreprocessingSettings
from .metrics import QualityNumbers, measure

if TYPE_CHECKING:
    from ..registration.template_transform import TemplateTransform

Verdict = Literal["pass", "warn", "fail"]


@dataclass(frozen=True)
class Quality(QualityNumbers):
    """The numbers of one subject, and what they come to.

    Attributes
    ----------
    brain_method : str
        Where the mask comes from.
    verdict : {"pass", "warn", "fail"}
    reasons : tuple of str
        A sentence for everything that is out of the ordinary.
    unusual : tuple of str
        The numbers that lie outside their limits, by name.
    """

    brain_method: str
    verdict: Verdict
    reasons: tuple[str, ...] = ()
    unusual: tuple[str, ...] = ()

    def save(self, path: Path) -> Path:
        """Write JSON, whole or not at all."""
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(asdict(self), indent=1))
        return path

    @classmethod
    def load(cls, path: Path) -> "Quality":
        """Read what `save` wrote.

        Raises
        ------
        UserError
            Missing or damaged.
        """
        try:
            content = load_json(path)
            return cls(**content | {name: tuple(content[name]) for name in ("reasons", "unusual")})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{private(path)}: no quality record of a prepared subject there. Run prepare for the subject again."
            ) from error


def measure_quality(
    t1w: Volume,
    brain: BrainExtraction,
    transform: "TemplateTransform",
    template: Template,
    settings: PreprocessingSettings,
    *,
    warnings: Sequence[str] = (),
) -> Quality:
    """Judge a brain mask and a registration.

    Parameters
    ----------
    t1w : Volume
        Native, bias-corrected.
    brain : BrainExtraction
        On the grid of `t1w`.
    transform : TemplateTransform
    template : Template
        At the resolution to judge at.
    settings : PreprocessingSettings
        The limits: ``quality`` for "warn", ``registration`` for "fail".
    warnings : sequence of str
        Sentences from elsewhere; any makes the verdict "warn" at least.
    """
    numbers = measure(t1w, brain.mask, transform, template)
    failures = _failures(numbers, settings)
    failed = {limit.number for limit in failures}
    odd = [limit for limit in _oddities(numbers, settings) if limit.number not in failed]
    messages = tuple(limit.sentence for limit in failures)
    noted = tuple(limit.sentence for limit in odd) + brain.notes + tuple(warnings)
    verdict: Verdict = "fail" if messages else "warn" if noted else "pass"
    unusual = tuple(limit.number for limit in (*failures, *odd))
    return Quality(
        **asdict(numbers), brain_method=brain.method, verdict=verdict, reasons=messages + noted, unusual=unusual
    )


@dataclass(frozen=True)
class _Limit:
    """Where a number may lie, and what to say where it does not."""

    number: str
    low: float
    high: float
    sentence: str

    def broken_by(self, numbers: QualityNumbers) -> bool:
        # The right way round for NaN: what could not be measured is out of the ordinary.
        return not self.low <= getattr(numbers, self.number) <= self.high


_NO_LIMIT = float("inf")


def _failures(numbers: QualityNumbers, settings: PreprocessingSettings) -> list[_Limit]:
    limits = settings.registration
    found = [
        _Limit(
            "brain_overlap",
            limits.smallest_overlap,
            _NO_LIMIT,
            f"registration failed: the warped brain overlaps the template's with Dice {numbers.brain_overlap:.2f}, "
            f"expected at least {limits.smallest_overlap:g}; look at the picture, then at the brain mask and the "
            "scan's orientation",
        ),
        _Limit(
            "similarity_after",
            limits.smallest_similarity,
            _NO_LIMIT,
            f"registration failed: the warped T1w correlates with the template by {numbers.similarity_after:.2f}, "
            f"expected at least {limits.smallest_similarity:g}; look at the picture: is it a T1w, the right way up?",
        ),
    ]
    return [limit for limit in found if limit.broken_by(numbers)]


def _oddities(numbers: QualityNumbers, settings: PreprocessingSettings) -> list[_Limit]:
    n, usual = numbers, settings.quality
    found = [
        _Limit(
            "brain_ml",
            usual.smallest_brain_ml,
            usual.largest_brain_ml,
            f"a brain of {n.brain_ml:.0f} ml (usual: {usual.smallest_brain_ml:g}-{usual.largest_brain_ml:g})",
        ),
        _Limit(
            "brain_overlap",
            usual.smallest_overlap,
            _NO_LIMIT,
            f"overlap with the template's brain {n.brain_overlap:.3f} (usual: above {usual.smallest_overlap:g})",
        ),
        _Limit(
            "coverage",
            usual.smallest_coverage,
            _NO_LIMIT,
            f"only {n.coverage:.1%} of the template's brain is covered (usual: above {usual.smallest_coverage:.1%})",
        ),
        _Limit(
            "similarity_after",
            usual.smallest_similarity,
            _NO_LIMIT,
            f"similarity to the template {n.similarity_after:.2f} (usual: above {usual.smallest_similarity:g})",
        ),
        _Limit(
            "white_matter_overlap",
            usual.smallest_white_matter_overlap,
            _NO_LIMIT,
            f"overlap with the template's white matter {n.white_matter_overlap:.2f} (usual: above "
            f"{usual.smallest_white_matter_overlap:g})",
        ),
        _Limit(
            "jacobian_percentile_1",
            usual.smallest_jacobian,
            _NO_LIMIT,
            f"the warp shrinks a hundredth of the brain to {n.jacobian_percentile_1:.2f} of its volume or less (usual: "
            f"above {usual.smallest_jacobian:g})",
        ),
        _Limit(
            "jacobian_percentile_99",
            -_NO_LIMIT,
            usual.largest_jacobian,
            f"the warp stretches a hundredth of the brain to {n.jacobian_percentile_99:.2f} of its volume or more "
            f"(usual: below {usual.largest_jacobian:g})",
        ),
        _Limit(
            "noise",
            -_NO_LIMIT,
            usual.largest_noise,
            f"noise of {n.noise:.1%} (usual: below {usual.largest_noise:.1%})",
        ),
        _Limit(
            "dark_share",
            -_NO_LIMIT,
            usual.largest_dark_share,
            f"{n.dark_share:.1%} of the brain mask is dark (usual: below {usual.largest_dark_share:.1%})",
        ),
    ]
    folded = _Limit("jacobian_smallest", 1e-9, _NO_LIMIT, "the warp folds space inside the brain")
    return [limit for limit in [*found, folded] if limit.broken_by(numbers)]
