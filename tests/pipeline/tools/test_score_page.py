"""The HTML page of `voxout evaluate`."""

import re

import numpy as np
import pytest
from voxout.data_manifests.errors import Failure, private
from voxout.data_manifests.images.volume import Grid, Volume
from voxout.evaluation.scoring.score_cohort import score_cohort
from voxout.evaluation.scoring.score_subject import score_map
from voxout.evaluation.settings import EvaluationSettings
from voxout.pipeline.tools.score_page import PAGE, write_score_page

GRID = Grid((12, 12, 12), np.diag([2.0, 2.0, 2.0, 1.0]))
SETTINGS = EvaluationSettings(smallest_cluster_mm3=0, bootstrap_draws=20)


def scored(name, *, healthy):
    random = np.random.default_rng(len(name))
    lesion = np.zeros(GRID.size_vox, bool)
    lesion[2:6, 2:6, 2:6] = not healthy
    map = Volume((random.normal(size=GRID.size_vox) + 3 * lesion).astype(np.float32), GRID)
    truth = None if healthy else Volume(lesion, GRID)
    group = "control" if healthy else "patient"
    return score_map(name, map, Volume(np.ones_like(lesion), GRID), truth, None, SETTINGS, group=group)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("scores")
    cohort = score_cohort([scored(f"h{n}", healthy=True) for n in range(3)] + [scored("p1", healthy=False)], SETTINGS)
    failed = [Failure("p2", "score", f"p2: {private('/data/Doe_John.nii')}: cannot be read.")]
    write_score_page(out, cohort, failed, ["no --brain-masks: all voxels of the image are scored."])
    return out


def test_the_page_shows_scores_subjects_and_failures(folder):
    page = (folder / PAGE).read_text(encoding="utf-8")
    for shown in ("Scores of anomaly maps", "AUROC, pooled", '<th scope="row">p1</th>', "p2: the file: cannot be read"):
        assert shown in page, shown
    assert "no --brain-masks" in page and "Doe" not in page
    assert (folder / "report" / "tables" / "subjects.csv").is_file()


def test_the_page_says_nothing_of_a_preparation_that_voxout_did_not_do(folder):
    page = (folder / PAGE).read_text(encoding="utf-8")
    assert "Preprocessing quality" not in page and "Brain, ml" not in page and "Voxout models" not in page
    assert not (folder / "report" / "tables" / "quality.csv").exists()
    table = re.search(r'<table class="sortable" id="subjects">.*?</table>', page, re.S)
    assert table is not None
    head, first = re.search(r"<thead>.*?</thead>", table[0], re.S), re.search(r"<tr data-key.*?</tr>", table[0], re.S)
    assert head is not None and first is not None
    assert head[0].count("<th ") == len(re.findall(r"<(?:td|th)[ >]", first[0])), "as many cells as columns"
