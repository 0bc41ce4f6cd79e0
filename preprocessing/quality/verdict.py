"""Quality control of a prepared subject.

A single failed registration can affect the results of a cohort more than any choice of method. Quality numbers outside
the limits of the settings raise a warning, or fail the subject if later results would not be reliable.
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
    """Quality numbers and verdict of one subject.

    Attributes
    ----------
    brain_method : str
        Method of the brain extraction.
    verdict : {"pass", "warn", "fail"}
    reasons : tuple of str
        One message for each failure or warning.
    unusual : tuple of str
        Names of the numbers outside their limits.
    """

    brain_method: str
    verdict: Verdict
    reasons: tuple[str, ...] = ()
    unusual: tuple[str, ...] = ()

    def save(self, path: Path) -> Path:
        """Write the record as JSON, atomically."""
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(asdict(self), indent=1))
        return path

    @classmethod
    def load(cls, path: Path) -> "Quality":
        """Load a record that `save` wrote.

        Raises
        ------
        UserError
            The file is missing or damaged.
        """
        try:
            content = load_json(path)
            return cls(**content | {name: tuple(content[name]) for name in ("reasons", "unusual")})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{private(path)}: holds no valid quality record. Run prepare for the subject again."
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
    """Compute the quality numbers of a subject and compare them with the limits.

    Parameters
    ----------
    t1w : Volume
        Native, bias-corrected.
    brain : BrainExtraction
        On the grid of `t1w`.
    transform : TemplateTransform
    template : Template
        Template at the resolution of the measurement.
    settings : PreprocessingSettings
        The limits: ``quality`` for "warn", ``registration`` for "fail".
    warnings : sequence of str
        Further warnings; with any of them the verdict is at least "warn".
    """
    numbers = measure(t1w, brain.mask, transform, template)
    failures = _failures(numbers, settings)
    failed = {limit.number for limit in failures}
    warned = [limit for limit in _warnings(numbers, settings) if limit.number not in failed]
    failure_messages = tuple(limit.message(numbers) for limit in failures)
    all_warnings = tuple(limit.message(numbers) for limit in warned) + brain.notes + tuple(warnings)
    verdict: Verdict = "fail" if failure_messages else "warn" if all_warnings else "pass"
    return Quality(
        **asdict(numbers),
        brain_method=brain.method,
        verdict=verdict,
        reasons=failure_messages + all_warnings,
        unusual=tuple(limit.number for limit in (*failures, *warned)),
    )


@dataclass(frozen=True)
class _Limit:
    """Allowed range of a number, and the text of the message if it is outside, with {value}, {low} and {high}."""

    number: str
    low: float
    high: float
    text: str

    def violated_by(self, numbers: QualityNumbers) -> bool:
        # True for NaN: a number that could not be computed violates its limit.
        return not self.low <= getattr(numbers, self.number) <= self.high

    def message(self, numbers: QualityNumbers) -> str:
        return self.text.format(value=getattr(numbers, self.number), low=self.low, high=self.high)


def _at_least(number: str, low: float, text: str) -> _Limit:
    return _Limit(number, low, float("inf"), text)


def _at_most(number: str, high: float, text: str) -> _Limit:
    return _Limit(number, float("-inf"), high, text)


# Limits outside of which a quality number raises a warning. They were chosen so that about 99 of 100 good preparations
# pass, and rounded outwards: 82 heads of IXI and of the MS patients, 16 elderly heads with large ventricles and 2
# tumours, checked by eye. benchmarks/quality.py shows what they detect.
_SMALLEST_OVERLAP = 0.97
"""Dice of the warped brain with the template's brain."""
_SMALLEST_COVERAGE = 0.98
"""Share of the template's brain inside the warped brain mask."""
_SMALLEST_SIMILARITY = 0.55
"""Correlation of the warped T1w with the template's T1w."""
_SMALLEST_WHITE_MATTER_OVERLAP = 0.6
"""Dice of the warped bright tissue with the template's white matter."""
_SMALLEST_JACOBIAN, _LARGEST_JACOBIAN = 0.55, 2.5
"""First and 99th percentile, in the brain, of the local volume change by the warp."""
_LARGEST_NOISE = 0.08
"""Standard deviation of the noise divided by the mean, in white matter."""
_LARGEST_DARK_SHARE = 0.03
"""Share of the brain mask darker than a tenth of the brain's median."""


def _failures(numbers: QualityNumbers, settings: PreprocessingSettings) -> list[_Limit]:
    limits = settings.registration
    found = [
        _at_least(
            "brain_overlap",
            limits.smallest_overlap,
            "registration failed: the warped brain overlaps the template's with Dice {value:.2f}, expected at least "
            "{low:g}; check the quality picture, the brain mask and the scan's orientation",
        ),
        _at_least(
            "similarity_after",
            limits.smallest_similarity,
            "registration failed: the warped T1w has a correlation of {value:.2f} with the template, expected at least "
            "{low:g}; check in the quality picture that the scan is a T1w and that its orientation is correct",
        ),
    ]
    return [limit for limit in found if limit.violated_by(numbers)]


def _warnings(numbers: QualityNumbers, settings: PreprocessingSettings) -> list[_Limit]:
    limits = settings.quality
    found = [
        _Limit(
            "brain_ml",
            limits.smallest_brain_ml,
            limits.largest_brain_ml,
            "brain volume {value:.0f} ml (usual: {low:g}-{high:g})",
        ),
        _at_least(
            "brain_overlap",
            _SMALLEST_OVERLAP,
            "overlap with the template's brain {value:.3f} (usual: above {low:g})",
        ),
        _at_least(
            "coverage",
            _SMALLEST_COVERAGE,
            "the mask covers only {value:.1%} of the template's brain (usual: above {low:.1%})",
        ),
        _at_least(
            "similarity_after",
            _SMALLEST_SIMILARITY,
            "similarity to the template {value:.2f} (usual: above {low:g})",
        ),
        _at_least(
            "white_matter_overlap",
            _SMALLEST_WHITE_MATTER_OVERLAP,
            "overlap with the template's white matter {value:.2f} (usual: above {low:g})",
        ),
        _at_least(
            "jacobian_percentile_1",
            _SMALLEST_JACOBIAN,
            "the warp shrinks 1 % of the brain to {value:.2f} of its volume or less (usual: above {low:g})",
        ),
        _at_most(
            "jacobian_percentile_99",
            _LARGEST_JACOBIAN,
            "the warp expands 1 % of the brain to {value:.2f} of its volume or more (usual: below {high:g})",
        ),
        _at_most("noise", _LARGEST_NOISE, "noise {value:.1%} of the mean intensity (usual: below {high:.1%})"),
        _at_most("dark_share", _LARGEST_DARK_SHARE, "{value:.1%} of the brain mask is dark (usual: below {high:.1%})"),
        _at_least("jacobian_smallest", 1e-9, "the warp folds space inside the brain"),
    ]
    return [limit for limit in found if limit.violated_by(numbers)]
