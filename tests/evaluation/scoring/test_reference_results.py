import json

import pytest
from voxout.data_manifests.errors import UserError
from voxout.evaluation.scoring.reference_results import read_run, run_name
from voxout.evaluation.scoring.score_cohort import score_cohort
from voxout.evaluation.scoring.tables import write_scores

from .test_score_cohort import SETTINGS, make


@pytest.fixture
def run(tmp_path):
    scores = score_cohort([make(n, healthy=n < 3)[0] for n in range(7)], SETTINGS)
    write_scores(tmp_path / "with flair" / "scores", scores)
    return tmp_path / "with flair", scores


def test_scores_are_read_from_any_path_of_a_run(run):
    folder, scores = run
    for path in (folder, folder / "scores", folder / "scores" / "scores.json"):
        read = read_run(path)
        assert read.name == run_name(path) == "with flair"
        assert read.estimates == dict(scores.estimates)
        assert read.evaluated_on == "7 subjects, native space, brain mask"
    assert read_run(folder, "FLAIR").name == "FLAIR"


def test_missing_run(tmp_path):
    with pytest.raises(UserError, match=r"holds no scores.json, expected the output folder .* Score the run first"):
        read_run(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", '{"auroc": {"value": 1}}', '{"auroc": 3}'])
def test_damaged_scores(tmp_path, content):
    (tmp_path / "scores.json").write_text(content)
    with pytest.raises(UserError, match=r"scores.json\W: not readable as the metrics of a run .* Score the run again"):
        read_run(tmp_path)


def test_metrics_of_another_program(tmp_path):
    (tmp_path / "scores.json").write_text(json.dumps({"accuracy": {}}))
    with pytest.raises(UserError, match=r"holds no metrics of voxout.* Name another file"):
        read_run(tmp_path)
