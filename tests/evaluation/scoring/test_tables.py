import csv
import json

import pytest
from voxout.evaluation.scoring.score_cohort import score_cohort
from voxout.evaluation.scoring.tables import FIELDS, write_scores

from .test_score_cohort import SETTINGS, make


def read(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    subjects = [make(n, healthy=n < 3)[0] for n in range(6)] + [make(40, lesion_mask=False)[0]]
    scores = score_cohort(subjects, SETTINGS)
    return scores, write_scores(tmp_path_factory.mktemp("scores out"), scores)


def test_scores_json(written):
    scores, path = written
    content = json.loads(path.read_text())
    about = content.pop("about")
    assert all(set(row) == {"by", "stratum", "metric", *FIELDS} for row in content.pop("strata"))
    assert about["mask"] == "brain mask" and about["space"] == "native"
    assert (about["subjects"], about["healthy_subjects"], about["subjects_with_lesions"]) == (7, 3, 3)
    assert about["subjects_without_truth"] == ["sub-40"]
    assert set(about["oracle"]) <= set(content)
    assert all(set(entry) == {"value", "ci_low", "ci_high", "n", "reason_undefined"} for entry in content.values())
    assert content["auroc"]["value"] == scores.estimates["auroc"].value


def test_scores_csv_has_a_row_for_every_subject(written):
    scores, path = written
    rows = read(path.parent / "scores.csv")
    assert [row["subject"] for row in rows] == [s.key for s in scores.subjects]
    assert float(rows[4]["auroc"]) == pytest.approx(scores.subjects[4].auroc.value, rel=1e-6)
    assert rows[0]["auroc"] == "" and rows[0]["reason_undefined"].startswith("no lesion")
    assert rows[6]["truth_known"] == "no" and rows[6]["lesions"] == ""


def test_lesions_csv_has_a_row_for_every_lesion(written):
    scores, path = written
    rows = read(path.parent / "lesions.csv")
    assert len(rows) == sum(len(s.lesions) for s in scores.subjects)
    assert sum(row["found"] == "yes" for row in rows) == sum(row.lesions_found or 0 for row in scores.rows)
    assert float(rows[0]["volume_mm3"]) == pytest.approx(scores.subjects[3].lesions[0].volume_mm3)


def test_tables_without_rows_have_headers(tmp_path):
    write_scores(tmp_path, score_cohort([make(n, healthy=True)[0] for n in range(3)], SETTINGS))
    assert (tmp_path / "lesions.csv").read_text().startswith("subject,lesion,volume_mm3")
    assert {p.name for p in tmp_path.iterdir()} == {"scores.json", "scores.csv", "lesions.csv", "strata.csv"}
