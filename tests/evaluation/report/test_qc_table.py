import csv
from datetime import datetime

import numpy as np
import pytest
from voxout.data_manifests.errors import Failure
from voxout.evaluation.report.cohort_page import CohortReport, write_report
from voxout.evaluation.report.qc_table import quality_table
from voxout.evaluation.report.report_inputs import QualityNumber, ReportSubject


def subject(key: str, verdict: str | None, overlap: float | None = None, noise: float | None = None, **more):
    numbers = (
        QualityNumber("brain_overlap", "Brain overlap", overlap, overlap is not None and overlap < 0.9),
        QualityNumber("noise", "Noise", noise),
    )
    return ReportSubject(key, "control", quality_verdict=verdict, quality=numbers if verdict else (), **more)


def cohort() -> list[ReportSubject]:
    ordinary = [subject(f"sub-{n}", "pass", 0.97 + 0.001 * n, 0.02) for n in range(9)]
    return [
        *ordinary,
        subject("sub-odd", "pass", 0.95, 0.02),
        subject("sub-warned", "warn", 0.974, None, quality_reasons=("noise not measured",), brain_method="given"),
        subject("sub-failed", "fail", 0.6, 0.02, quality_reasons=("registration failed: <Dice>",)),
        subject("sub-broken", None),
    ]


def test_outliers_come_first():
    table = quality_table(cohort(), {"sub-broken": "sub-broken: T1w is empty."})
    keys = [row.subject.key for row in table.rows]
    assert keys[:4] == ["sub-failed", "sub-broken", "sub-warned", "sub-odd"]
    broken = table.rows[1]
    assert (broken.verdict, broken.reasons, broken.distance) == (
        "not prepared",
        ("sub-broken: T1w is empty.",),
        None,
    )
    assert broken.numbers == (None, None)
    assert table.columns == (("brain_overlap", "Brain overlap"), ("noise", "Noise"))


def test_the_distance_by_hand():
    subjects = [subject(f"sub-{n}", "pass", float(n), 1.0) for n in range(9)]
    table = quality_table(subjects, {})
    distances = {row.subject.key: row.distance for row in table.rows}
    # Median 4, median absolute deviation 2; the noise is the same in all subjects and gives no distance.
    assert distances["sub-8"] == distances["sub-0"] == pytest.approx(4 / (1.4826 * 2))
    assert distances["sub-4"] == 0
    assert {row.furthest for row in table.rows} == {"Brain overlap"}
    assert [row.subject.key for row in table.rows][:2] == ["sub-0", "sub-8"]


def test_small_cohorts_have_no_distances():
    table = quality_table([subject(f"sub-{n}", "pass", float(n), 1.0) for n in range(7)], {})
    assert {row.distance for row in table.rows} == {None}


def test_the_file_and_the_page_have_all_numbers_and_reasons(tmp_path):
    failures = [Failure("sub-broken", "check", "sub-broken: T1w is empty.")]
    report = CohortReport("t", datetime(2026, 1, 1), cohort(), failures=failures)
    page = write_report(tmp_path / "index.html", report).read_text()
    with (tmp_path / "tables" / "quality.csv").open(newline="") as file:
        rows = {row["subject"]: row for row in csv.DictReader(file)}
    assert list(rows)[:2] == ["sub-failed", "sub-broken"] and len(rows) == 13
    failed = rows["sub-failed"]
    assert (failed["verdict"], failed["outside_limits"]) == ("fail", "brain_overlap")
    assert (float(failed["brain_overlap"]), failed["reasons"]) == (0.6, "registration failed: <Dice>")
    assert (rows["sub-warned"]["noise"], rows["sub-warned"]["brain_method"]) == ("", "given")
    assert rows["sub-broken"]["reasons"] == "sub-broken: T1w is empty."
    assert float(rows["sub-odd"]["distance_from_cohort"]) > 4
    section = page.split('id="quality-table"')[1].split("</table>")[0]
    keys = np.array([section.index(key) for key in ("sub-failed", "sub-broken", "sub-warned", "sub-odd", "sub-4")])
    assert (np.diff(keys) > 0).all()
    assert "registration failed: &lt;Dice&gt;" in section
    assert section.count('class="num unusual"') == 1


def test_a_cohort_without_numbers_has_no_table(tmp_path):
    report = CohortReport("t", datetime(2026, 1, 1), [ReportSubject("sub-1", "control")])
    assert "quality-table" not in write_report(tmp_path / "index.html", report).read_text().split("</style>")[1]
