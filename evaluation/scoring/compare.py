"""Comparison of methods: paired differences on the same subjects and bootstrap samples."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path

from ...data_manifests.atomic_write import atomic_write
from ...data_manifests.csv_file import write_csv
from ...data_manifests.errors import UserError
from ..metrics.bootstrap import Estimate
from ..settings import EvaluationSettings
from .paired_test import paired_p_values
from .score_cohort import ORACLES, CohortScores, score_cohort
from .score_folder import ScoreFolder
from .subject_scores import SubjectScores
from .tables import FIELDS

NOT_COMPARED = ("healthy_threshold", "prevalence")
"""Thresholds are in the units of each map; the prevalence is a property of the truth."""


@dataclass(frozen=True)
class Difference:
    """Metric of two methods and the difference `second` minus `first`, with an interval paired by subject.

    Attributes
    ----------
    metric, first, second : str
    of_first, of_second, difference : Estimate
    p_value : float or None
        Two-sided, from random signs of the subjects' differences (see `paired_test`); None for pooled metrics.
    """

    metric: str
    first: str
    second: str
    of_first: Estimate
    of_second: Estimate
    difference: Estimate
    p_value: float | None = None


@dataclass(frozen=True)
class Comparison:
    """Comparison of methods on their common subjects, returned by `compare`.

    Attributes
    ----------
    names : tuple of str
        Of the methods.
    subjects : tuple of str
        Compared subjects.
    not_compared : mapping from each other subject to the names of the methods that scored it
    differences : tuple of Difference
        One per metric and pair of methods, in the given order: `metric`, `first`, `second`, the estimates `of_first`,
        `of_second` and `difference` (second minus first), and, for metrics that add up over subjects, `p_value`.
    settings : EvaluationSettings
    """

    names: tuple[str, ...]
    subjects: tuple[str, ...]
    not_compared: dict[str, tuple[str, ...]]
    differences: tuple[Difference, ...]
    settings: EvaluationSettings

    def __repr__(self) -> str:
        return f"Comparison(names={list(self.names)}, subjects={len(self.subjects)})"


def compare(folders: Sequence[ScoreFolder], *, seed: int = 0) -> Comparison:
    """Compare methods from their stored subject scores, without reading the maps again.

    Every method is scored again on the common subjects, with the threshold set on its own maps of the healthy subjects.
    The bootstrap draws the same subjects for all methods, so that effects of a subject common to all methods cancel in
    the difference.

    Raises
    ------
    UserError
        Fewer than two folders, a folder named twice, different settings, masks or truths, or no common subjects.
    """
    names = tuple(_names(folders))
    if seed < 0:
        raise UserError(f"compare: found seed {seed}, expected 0 or more. Choose another seed.")
    if len(folders) < 2:
        raise UserError("compare: found one folder of scores, expected at least two. Name another folder.")
    _require_same_scoring(names, folders)
    by_key = [{subject.key: subject for subject in folder.subjects} for folder in folders]
    common = [key for key in by_key[0] if all(key in subjects for subjects in by_key)]
    if not common:
        raise UserError(f"compare: {' and '.join(names)} share no subject, expected common ids. Check the folders.")
    for key in common:
        _require_same_truth(key, [subjects[key] for subjects in by_key])
    first = folders[0]
    scored = {
        name: score_cohort(
            [subjects[key] for key in common],
            first.settings,
            space=first.space,
            mask=first.mask,
            seed=seed,
            with_strata=False,
        )
        for name, subjects in zip(names, by_key, strict=True)
    }
    return Comparison(
        names=names,
        subjects=tuple(common),
        not_compared={
            key: tuple(n for n, subjects in zip(names, by_key, strict=True) if key in subjects)
            for key in sorted(set().union(*by_key) - set(common))
        },
        differences=tuple(_differences(scored, seed)),
        settings=first.settings,
    )


def _require_same_scoring(names: Sequence[str], folders: Sequence[ScoreFolder]) -> None:
    for name, folder in zip(names[1:], folders[1:], strict=True):
        for what in ("settings", "space", "mask"):
            ours, theirs = getattr(folders[0], what), getattr(folder, what)
            if ours != theirs:
                raise UserError(
                    f"compare: {names[0]} and {name} were scored with different {what} "
                    f"({_first_difference(ours, theirs)}), expected the same. Score one of them again."
                )


def _require_same_truth(key: str, scores: Sequence[SubjectScores]) -> None:
    truths = {
        (
            s.group,
            s.truth_known,
            s.n_voxels,
            s.n_lesion,
            tuple((lesion.volume_mm3, *(round(mm, 2) for mm in lesion.centre_mm)) for lesion in s.lesions),
        )
        for s in scores
    }
    if len(truths) > 1:
        raise UserError(
            f"compare: {key} was scored against different masks or in different groups, expected the same. "
            "Score all methods with the same --masks, --brain-masks and --healthy."
        )


def write_comparison(folder: Path, comparison: Comparison) -> None:
    """Write ``compare.json`` and ``compare.csv`` (one row per metric and pair of methods)."""
    about = {
        "methods": list(comparison.names),
        "subjects": list(comparison.subjects),
        "subjects_not_compared": {key: list(names) for key, names in comparison.not_compared.items()},
        "oracle": list(ORACLES),
        "settings": comparison.settings.model_dump(mode="json"),
    }
    content = {"about": about, "differences": [asdict(difference) for difference in comparison.differences]}
    with atomic_write(folder / "compare.json") as temporary:
        temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    rows = (
        [d.metric, d.first, d.second, d.of_first.value, d.of_second.value]
        + [getattr(d.difference, field) for field in FIELDS]
        + [d.p_value]
        for d in comparison.differences
    )
    header = ["metric", "first", "second", "of_first", "of_second", "difference", *FIELDS[1:], "p_value"]
    write_csv(folder / "compare.csv", header, rows)


def _differences(scored: dict[str, CohortScores], seed: int):
    for (first, one), (second, other) in combinations(scored.items(), 2):
        p_values = paired_p_values(one, other, seed=seed)
        for metric, measure in one.measures.items():
            if metric in NOT_COMPARED:
                continue
            difference = other.measures[metric].minus(measure)
            yield Difference(
                metric,
                first,
                second,
                measure.estimate(),
                other.measures[metric].estimate(),
                difference.estimate(),
                p_values.get(metric),
            )


def _names(folders: Sequence[ScoreFolder]) -> list[str]:
    """Names of the folders, with as many parent folders as needed to make them unique."""
    paths = [folder.path.resolve() for folder in folders]
    if len(set(paths)) < len(paths):
        raise UserError("compare: a folder of scores is named twice, expected different folders. Leave one out.")
    depth = 1
    while len({path.parts[-depth:] for path in paths}) < len(paths):
        depth += 1
    return ["/".join(path.parts[-depth:]) for path in paths]


def _first_difference(ours: object, theirs: object) -> str:
    if isinstance(ours, EvaluationSettings) and isinstance(theirs, EvaluationSettings):
        name = next(n for n in type(ours).model_fields if getattr(ours, n) != getattr(theirs, n))
        return f"{name} {getattr(ours, name)} against {getattr(theirs, name)}"
    return f"{ours} against {theirs}"
