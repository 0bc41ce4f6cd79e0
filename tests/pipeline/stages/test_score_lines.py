"""The scores that a command prints at its end."""

import numpy as np
from voxout.data_manifests.images.volume import Grid, Volume
from voxout.evaluation.scoring.operating_point import OperatingPoint
from voxout.evaluation.scoring.score_cohort import score_cohort
from voxout.evaluation.scoring.score_subject import score_map
from voxout.evaluation.settings import EvaluationSettings
from voxout.pipeline.stages.score import score_lines

GRID = Grid((12, 12, 12), np.diag([2.0, 2.0, 2.0, 1.0]))
SETTINGS = EvaluationSettings(bootstrap_draws=20)


def lines(lesion):
    z = np.random.default_rng(0).standard_normal(GRID.size_vox).astype(np.float32)
    inside = Volume(np.ones(GRID.size_vox, bool), GRID)
    healthy = score_map("sub-1", Volume(z, GRID), inside, None, None, SETTINGS, group="control")
    point = OperatingPoint.fixed_by_maps(9, "a model", 0, 20)
    subjects = [healthy]
    if lesion:
        mask = np.zeros(GRID.size_vox, bool)
        mask[4:7, 4:7, 4:7] = True
        subjects.append(
            score_map("sub-2", Volume(z, GRID), inside, Volume(mask, GRID), None, SETTINGS, group="patient")
        )
    return score_lines(score_cohort(subjects, SETTINGS, point=point))


def test_scores_that_need_lesions_are_left_out_where_there_are_none():
    """A healthy scan mapped alone ended with six lines "undefined"."""
    shown = "\n".join(lines(lesion=False))
    assert "undefined" not in shown and "AUROC" not in shown
    assert "Threshold from healthy scans" in shown and "False clusters per healthy subject" in shown


def test_all_main_scores_are_shown_with_lesions():
    shown = lines(lesion=True)
    assert len(shown) == 10 and any("AUROC, pooled" in line for line in shown)
