"""Quality-control tables of the preprocessing: one row per subject, outliers first, and one row per site."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .report_inputs import QualityNumber, ReportSubject

FEWEST_TO_COMPARE = 8
"""Minimum number of subjects for computing distances from the cohort."""
_ORDER = ("fail", "not prepared", "warn", "pass")


@dataclass(frozen=True)
class QualityRow:
    """Row of one subject.

    Attributes
    ----------
    subject : ReportSubject
    verdict : {"fail", "not prepared", "warn", "pass"}
    reasons : tuple of str
        For subjects that were not prepared, the reason of the failure.
    numbers : tuple of QualityNumber or None
        In the order of the columns; None if missing.
    distance : float or None
        Distance from the cohort in the most unusual measure: absolute deviation from the median in robust standard
        deviations (1.4826 times the median absolute deviation).
    furthest : str
        Label of that measure.
    """

    subject: ReportSubject
    verdict: str
    reasons: tuple[str, ...]
    numbers: tuple[QualityNumber | None, ...]
    distance: float | None
    furthest: str


@dataclass(frozen=True)
class QualityTable:
    """All rows, and the columns as (name, label)."""

    columns: tuple[tuple[str, str], ...]
    rows: tuple[QualityRow, ...]

    def as_lines(self) -> list[dict[str, object]]:
        """Rows of the CSV file."""
        return [
            {"subject": row.subject.key, "role": row.subject.role, "site": row.subject.site, "verdict": row.verdict}
            | {name: n and n.value for (name, _), n in zip(self.columns, row.numbers, strict=True)}
            | {
                "brain_method": row.subject.brain_method,
                "distance_from_cohort": row.distance,
                "furthest_number": row.furthest,
                "outside_limits": " ".join(n.name for n in row.numbers if n is not None and n.unusual),
                "reasons": "; ".join(row.reasons),
            }
            for row in self.rows
        ]


def quality_table(subjects: Sequence[ReportSubject], failed: Mapping[str, str]) -> QualityTable:
    """Compare the quality measures of the subjects of a cohort.

    Parameters
    ----------
    subjects : sequence of ReportSubject
    failed : mapping from subject key to the reason of the failure

    Returns
    -------
    QualityTable
        Without measures that no subject has.
        Ordered by verdict (fail, not prepared, warn, pass), then by descending distance from the cohort.
    """
    numbers_of_all = (number for subject in subjects for number in subject.quality)
    columns = tuple({number.name: number.label for number in numbers_of_all if number.value is not None}.items())
    values = np.full((len(subjects), len(columns)), np.nan)
    numbers: list[tuple[QualityNumber | None, ...]] = []
    for row, subject in enumerate(subjects):
        by_name = {number.name: number for number in subject.quality}
        numbers.append(tuple(by_name.get(name) for name, _ in columns))
        values[row] = [np.nan if n is None or n.value is None else n.value for n in numbers[-1]]
    rows = []
    for subject, own, distances in zip(subjects, numbers, _distances(values), strict=True):
        verdict = subject.quality_verdict or "not prepared"
        reasons = subject.quality_reasons or ((failed[subject.key],) if subject.key in failed else ())
        place = int(np.argmax(np.nan_to_num(distances, nan=-1))) if np.isfinite(distances).any() else None
        distance, furthest = (float(distances[place]), columns[place][1]) if place is not None else (None, "")
        rows.append(QualityRow(subject, verdict, reasons, own, distance, furthest))
    rows.sort(key=lambda row: (_ORDER.index(row.verdict), -(row.distance or 0), row.subject.key))
    return QualityTable(columns, tuple(rows))


@dataclass(frozen=True)
class QualityLine:
    """Summary of the preprocessing quality at one site."""

    site: str
    subjects: int
    verdicts: Mapping[str, int]
    brain_ml: float | None
    smallest_ml: float | None
    largest_ml: float | None


def quality_lines(subjects: Sequence[ReportSubject]) -> list[QualityLine]:
    """Summarise the quality of each site, in alphabetical order."""
    lines = []
    for site in sorted({subject.site or "" for subject in subjects}):
        here = [s for s in subjects if (s.site or "") == site]
        counts = Counter(subject.quality_verdict or "not prepared" for subject in here)
        verdicts = {verdict: counts[verdict] for verdict in ("pass", "warn", "fail", "not prepared")}
        volumes = [s.brain_volume_ml for s in here if s.brain_volume_ml is not None]
        summary = (float(np.mean(volumes)), min(volumes), max(volumes)) if volumes else (None, None, None)
        lines.append(QualityLine(site or "site not given", len(here), verdicts, *summary))
    return lines


def _distances(values: np.ndarray) -> np.ndarray:
    """Absolute deviation from the median of each column in robust standard deviations, (S, K); NaN if undefined."""
    distances = np.full(values.shape, np.nan)
    for column, present in enumerate(np.isfinite(values).T):
        if present.sum() < FEWEST_TO_COMPARE:
            continue
        deviation = np.abs(values[present, column] - np.median(values[present, column]))
        scale = 1.4826 * np.median(deviation)
        if scale > 0:
            distances[present, column] = deviation / scale
    return distances
