"""The certificate: curves and limits of every kind of lesion, their agreement, and false clusters."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ...data_manifests.errors import UserError, counted
from ...data_manifests.synthetic.lesion_kinds import KINDS
from ...data_manifests.synthetic.painted_copies import LARGEST_ML, SMALLEST_ML
from ..metrics.bootstrap import Estimate, mean_over_subjects, resample_subjects
from .agreement import Cell, cells_of, foretold_by_other_heads
from .detection_curve import DetectionCurve, design
from .limits import Limit
from .painted_heads import PaintedHead, TriedLesion
from .regions import Region, regions_of

SHARES = (0.5, 0.8)
"""Shares of lesions found for which limits are given."""
REFERENCE = "dark"
"""Kind that limits by place are given for."""
FEWEST_LESIONS = 20
"""Of a kind, for a curve."""


@dataclass(frozen=True)
class About:
    """What was certified.

    Attributes
    ----------
    threshold : float
        Of the model.
    smallest_cluster_mm3, spacing_mm : float
    scorers : tuple of str
    training_controls : int
    version : str
        Of voxout.
    learned_from : tuple of str
        Families of edits that the scorer `learned`, or the encoder, was trained on; empty: none.
    modalities : tuple of str
    """

    threshold: float
    smallest_cluster_mm3: float
    spacing_mm: float
    scorers: tuple[str, ...]
    training_controls: int
    version: str
    learned_from: tuple[str, ...] = ()
    modalities: tuple[str, ...] = ("t1w",)


@dataclass(frozen=True, eq=False)
class Certificate:
    """Detection limits of a model.

    Attributes
    ----------
    about : About
    heads : tuple of PaintedHead
    draws, seed : int
        Of the bootstrap over participants.
    """

    about: About
    heads: tuple[PaintedHead, ...]
    draws: int = 1000
    seed: int = 0

    def __post_init__(self):
        if not any(head.lesions for head in self.heads):
            raise UserError(
                "certificate: found no lesion that could be painted, expected some in each head. Check the quality of "
                "the prepared heads."
            )

    @cached_property
    def lesions(self) -> tuple[TriedLesion, ...]:
        """Lesions of all heads."""
        return tuple(lesion for head in self.heads for lesion in head.lesions)

    @cached_property
    def participants(self) -> list[str]:
        """Participant of each lesion."""
        return [head.participant for head in self.heads for _ in head.lesions]

    @cached_property
    def weights_of_heads(self) -> np.ndarray:
        """How often each head is in each bootstrap sample, (1 + draws, heads)."""
        names = [head.participant for head in self.heads]
        return resample_subjects([""] * len(self.heads), self.draws, self.seed, names)

    @cached_property
    def weights(self) -> np.ndarray:
        """How often each lesion is in each bootstrap sample, (1 + draws, lesions)."""
        return np.repeat(self.weights_of_heads, [len(head.lesions) for head in self.heads], axis=1)

    @property
    def n_participants(self) -> int:
        """Number of different participants."""
        return len({head.participant for head in self.heads})

    @property
    def false_clusters(self) -> Estimate:
        """Clusters at the threshold per healthy brain."""
        counts = [float(head.false_clusters) for head in self.heads]
        return mean_over_subjects(counts, self.weights_of_heads, why_none="no head").estimate()

    @cached_property
    def curves(self) -> Mapping[str, DetectionCurve]:
        """Curve of every kind with enough lesions."""
        curves = {}
        for kind in KINDS.values():
            own = self._of_kind(kind.name)
            if own.sum() >= FEWEST_LESIONS:
                curves[kind.name] = DetectionCurve.fit(
                    self._ml[own],
                    self._strength[own],
                    self.found[own],
                    self.weights[:, own],
                    usual=kind.usual,
                    sizes_ml=(SMALLEST_ML, LARGEST_ML),
                    participants=self.n_participants,
                )
        return curves

    @cached_property
    def limits(self) -> tuple[Limit, ...]:
        """Limits of every kind at three strengths."""
        return tuple(
            Limit(kind.name, strength, share, self.curves[kind.name].limit(share, strength).estimate())
            for kind in KINDS.values()
            if kind.name in self.curves
            for strength in (round((kind.weakest * kind.usual) ** 0.5, 2), kind.usual, kind.strongest)
            for share in SHARES
        )

    def limit_of(self, kind: str) -> Limit | None:
        """Size from which half of the lesions of a kind are found, at its usual strength; None without a curve."""
        return next(
            (li for li in self.limits if (li.kind, li.strength, li.share) == (kind, KINDS[kind].usual, 0.5)), None
        )

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        """Share found against that foretold by the curves of the other heads, by kind and size."""
        cells: list[Cell] = []
        for kind in self.curves:
            own = self._of_kind(kind)
            participants = [name for name, chosen in zip(self.participants, own, strict=True) if chosen]
            ml, found = self._ml[own], self.found[own]
            foretold = foretold_by_other_heads(ml, self._strength[own], found, participants, KINDS[kind].usual)
            cells += cells_of(kind, ml, foretold, found)
        return tuple(cells)

    @cached_property
    def regions(self) -> tuple[Region, ...]:
        """Lobes and tissues with enough lesions; the largest first."""
        curve, known = self.curves.get(REFERENCE), np.isfinite(self.logits[0])
        if curve is None:
            return ()
        lesions = [lesion for lesion, is_known in zip(self.lesions, known, strict=True) if is_known]
        return regions_of(
            {"lobe": [lesion.lobe for lesion in lesions], "tissue": [lesion.tissue for lesion in lesions]},
            self.logits[:, known],
            self.found[known],
            self.weights[:, known],
            curve,
            REFERENCE,
        )

    @cached_property
    def logits(self) -> np.ndarray:
        """Logit of every lesion by the curve of its kind in each sample, (1 + draws, N); NaN without a curve."""
        logits = np.full(self.weights.shape, np.nan)
        for kind, curve in self.curves.items():
            own = self._of_kind(kind)
            logits[:, own] = curve.coefficients @ design(self._ml[own], self._strength[own], curve.usual).T
        return logits

    @property
    def places_mm(self) -> np.ndarray:
        """Centres of all lesions, (N, 3)."""
        return np.array([(lesion.x_mm, lesion.y_mm, lesion.z_mm) for lesion in self.lesions])

    @cached_property
    def found(self) -> np.ndarray:
        """Whether each lesion was found, (N,)."""
        return np.array([lesion.found for lesion in self.lesions])

    @property
    def sentence(self) -> str:
        """Sentence for the methods section of a paper."""
        false = self.false_clusters
        rate = f"{false.value:.2g}" + (
            f" ({false.ci_low:.2g} to {false.ci_high:.2g})" if false.ci_low is not None else ""
        )
        kinds = [KINDS[kind] for kind in self.curves]
        found = []
        for kind in kinds:
            limit = self.limit_of(kind.name)
            if limit is not None:
                interval = f" ({limit.interval})" if limit.interval else ""
                found.append(f"{kind.in_words.format(f'{kind.usual:g}')}: {limit.text}{interval}")
        return (
            f"Detection limits of the model (voxout {self.about.version}; {', '.join(self.about.scorers)}; "
            f"{counted(self.about.training_controls, 'training control')}; {self.about.spacing_mm:g} mm) were "
            f"measured with {counted(len(self.lesions), 'simulated lesion')} of {SMALLEST_ML:g} to {LARGEST_ML:g} ml, "
            f"painted after preparation into {counted(self.n_participants, 'healthy participant')} held out from "
            f"fitting; at the model's threshold (z = {self.about.threshold:.2f}), which gave {rate} false-positive "
            f"clusters per healthy brain, half of the lesions were found from these sizes (95 % bootstrap "
            f"intervals over participants): {'; '.join(found) or 'not defined'}."
        )

    @cached_property
    def _ml(self) -> np.ndarray:
        return np.array([lesion.ml for lesion in self.lesions])

    @cached_property
    def _strength(self) -> np.ndarray:
        return np.array([lesion.strength for lesion in self.lesions])

    def _of_kind(self, kind: str) -> np.ndarray:
        return np.array([lesion.kind == kind for lesion in self.lesions])
