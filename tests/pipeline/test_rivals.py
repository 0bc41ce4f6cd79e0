"""`voxout rivals` on small phantoms: the run, the methods, the comparison, and what can go wrong."""

import csv
import json
from collections.abc import Mapping
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from voxout.data_manifests.cohort.output_paths import OutputFolder
from voxout.data_manifests.synthetic.phantoms import small_cohort
from voxout.evaluation.scoring.score_folder import ScoreFolder
from voxout.evaluation.scoring.side_by_side import COLUMNS
from voxout.models.rivals import presets, registry
from voxout.models.rivals.cross_fit import CrossFit
from voxout.models.rivals.forms import FORMS
from voxout.models.rivals.frozen_encoders import ResNetFeatures
from voxout.pipeline.config.config import load_config
from voxout.pipeline.rivals.cohort import RivalCohort

from .commands import in_process

SETTINGS = """
preprocessing:
  spacing_mm: 4.0
  bias_field: {working_spacing_mm: 16.0}
  registration: {transform: affine, working_spacing_mm: 4.0, smallest_similarity: 0.2}
models:
  ensemble: {scorers: [intensity], brain_components: 0}
evaluation: {bootstrap_draws: 50}
"""
SHORT = replace(presets.CPU, folds=2, steps=4, batch=4, widths=(8, 8, 8, 8), encoder_steps=10)

pytestmark = pytest.mark.usefixtures("warm_workers", "short_preset")


class FailsOnPatients:
    """A method of another package."""

    fewest_controls = 3

    def fit(self, controls):
        pass

    def score(self, subject):
        if subject.key == "sub-patient001":
            raise RuntimeError("out of order")
        return subject.images[0]


@pytest.fixture(scope="module")
def short_preset():
    """Train networks for a few steps only, and offer the method above."""
    every = metadata.entry_points
    point = metadata.EntryPoint("fails-on-patients", f"{__name__}:FailsOnPatients", registry.GROUP)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(presets, "PRESETS", {"cpu": SHORT})
        patch.setattr(
            metadata, "entry_points", lambda **by: [point] if by == {"group": registry.GROUP} else every(**by)
        )
        patch.setattr(metadata.EntryPoint, "load", lambda self: FailsOnPatients)
        yield


@pytest.fixture(scope="module")
def compared(short_preset, warm_workers, tmp_path_factory):
    """A cohort, its run, and the comparison with three methods, all from one command."""
    folder = tmp_path_factory.mktemp("rivals")
    cohort = small_cohort(folder / "cohort", controls=9, held_out=2, patients=3, seed=3)
    (folder / "settings.yaml").write_text(SETTINGS)
    words = ["--config", folder / "settings.yaml", "--device", "cpu", "--jobs", "2"]
    done = in_process("rivals", cohort, folder / "out", "--methods", "intensity", "z-score", "denoising-unet", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "out", done


def _rows(out: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((out / "rivals" / "comparison.csv").open(encoding="utf-8")))


def _times(out: Path) -> Mapping[Path, int]:
    return {path: path.stat().st_mtime_ns for path in (out / "rivals").glob("*/maps/**/*.npy")}


def test_one_command_runs_the_stages_and_the_methods(compared):
    out, done = compared
    assert (out / "report" / "index.html").is_file()
    rows = _rows(out)
    assert {(row["method"], row["form"]) for row in rows} == {("voxout", "as mapped")} | {
        (name, form) for name in ("intensity", "z-score", "denoising-unet") for form in FORMS
    }
    assert {row["metric"] for row in rows} == set(COLUMNS)
    assert "Average precision, pooled: voxout has" in done.stdout
    page = (out / "rivals" / "report" / "index.html").read_text(encoding="utf-8")
    for words in ("Methods side by side", "denoising-unet", "sub-patient001", "CPU-s a step"):
        assert words in page


def test_our_own_row_has_the_scores_of_the_run(compared):
    out, _ = compared
    scores = json.loads((out / "scores" / "scores.json").read_text())
    own = {row["metric"]: row["value"] for row in _rows(out) if row["method"] == "voxout"}
    for name in ("average_precision", "auroc", "lesion_sensitivity", "froc_score"):
        assert float(own[name]) == pytest.approx(scores[name]["value"])


def test_every_method_is_scored_against_the_same_truth(compared):
    out, _ = compared
    run = {s.key: s for s in ScoreFolder.open(out).subjects}
    from voxout.evaluation.scoring.subject_scores import SubjectScores

    for path in (out / "rivals").glob("*/scores/*/*.npz"):
        scores = SubjectScores.load(path)
        own = run[scores.key]
        assert (scores.n_voxels, scores.n_lesion, scores.group) == (own.n_voxels, own.n_lesion, own.group)


def test_a_form_is_chosen_on_edits_and_not_on_the_subjects(compared):
    out, _ = compared
    about = json.loads((out / "rivals" / "comparison.json").read_text())["about"]
    for name in ("intensity", "z-score", "denoising-unet"):
        ranks = about["on_edits"][name]
        chosen = {row["form"] for row in _rows(out) if row["method"] == name and row["chosen"] == "True"}
        assert chosen == {max(FORMS, key=lambda form: ranks[form])}
        assert all(0 <= rank <= 1 for rank in ranks.values())


def test_edited_copies_differ_where_they_are_edited(compared):
    out = OutputFolder(compared[0])
    cohort = RivalCohort.open(out, SHORT, device="cpu", jobs=1)
    assert load_config(out.config) == cohort.config
    controls = replace(cohort.controls, folder=out.rivals / "z-score")
    fit = CrossFit("z-score", controls, {}, controls.keys, cohort.config.models.learned.families)
    raised = []
    for key, copy in fit.edited_copies().items():
        truth = fit.truth_of_copy(key)
        before = np.load(out.rivals / "z-score" / "maps" / "controls" / f"{key}.npy")
        changed = np.abs(copy - before) > 1e-4
        assert (truth == 1).any()
        raised.append(changed[truth == 1].mean())
        assert changed[truth == 0].mean() < 0.02
    assert np.mean(raised) > 0.5


def test_a_second_call_goes_on_and_the_cohort_need_not_be_named(compared):
    out, _ = compared
    before = _times(out)
    lost = next(path for path in before if path.stem == "sub-patient001")
    lost.unlink()
    rows = _rows(out)
    done = in_process("rivals", out, "--methods", "intensity", "z-score", "denoising-unet", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    after = _times(out)
    assert after.keys() == before.keys()
    assert {path for path in before if before[path] != after[path]} == {lost}
    assert _rows(out) == rows


def test_kinds_of_lesions_from_a_table(compared, tmp_path):
    out, _ = compared
    lesions = [row for row in csv.DictReader((out / "scores" / "lesions.csv").open(encoding="utf-8"))]
    table = tmp_path / "kinds.csv"
    lines = [f"{row['subject']},{row['x_mm']},{row['y_mm']},{row['z_mm']},dark" for row in lesions]
    table.write_text("subject,x_mm,y_mm,z_mm,kind\n" + "\n".join(lines) + "\n")
    done = in_process("rivals", out, "--methods", "intensity", "--lesions", table, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    groups = list(csv.DictReader((out / "rivals" / "lesion_groups.csv").open(encoding="utf-8")))
    dark = [row for row in groups if row["by"] == "kind"]
    assert {row["group"] for row in dark} == {"dark"}
    assert {int(row["n"]) for row in dark} == {len(lesions)}
    table.write_text("subject,x_mm,y_mm,kind\nsub-patient001,1,2,dark\n")
    refused = in_process("rivals", out, "--methods", "intensity", "--lesions", table)
    assert refused.returncode == 2
    assert "lacks column z_mm" in refused.stderr
    table.write_text("subject,x_mm,y_mm,z_mm,kind\nsub-nobody,1,2,3,dark\nsub-patient001,1,two,3,dark\n")
    refused = in_process("rivals", out, "--methods", "intensity", "--lesions", table)
    assert "row 2: sub-nobody is not a mapped subject" in refused.stderr
    assert "row 3: x_mm, y_mm, z_mm are not three numbers" in refused.stderr


def test_methods_that_fail_are_named_and_the_others_go_on(compared):
    out, _ = compared
    done = in_process("rivals", out, "--methods", "fails-on-patients", "learned", "intensity", "--device", "cpu")
    assert done.returncode == 3
    assert "fails-on-patients: failed on sub-patient001 (RuntimeError: out of order)" in done.stderr
    assert "learned is left out. learned: found 9 controls to fit it on, expected at least 40" in done.stderr
    about = json.loads((out / "rivals" / "comparison.json").read_text())["about"]
    assert about["subjects_left_out"] == ["sub-patient001"]
    assert len(about["failures"]) == 2
    assert {row["method"] for row in _rows(out)} == {"voxout", "intensity", "fails-on-patients"}
    assert "out of order" in (out / "rivals" / "report" / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--methods", "z-scores"), "--methods: found z-scores, expected some of intensity"),
        (("--preset", "gpu"), "--preset: found gpu, expected one of cpu"),
        (("--methods", "learned", "--device", "cpu"), "rivals: no method could be run"),
        (
            ("--methods", "feature-inversion", "--encoder-weights", "nothing.safetensors"),
            "--encoder-weights: found no file nothing.safetensors, expected the weights of a ResNet-34 there",
        ),
    ],
)
def test_commands_that_cannot_be_done(compared, words, sentence):
    done = in_process("rivals", compared[0], *words)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_without_a_run(tmp_path):
    done = in_process("rivals", tmp_path, "--methods", "intensity")
    assert done.returncode == 2
    assert "expected its output folder. Name COHORT and OUT." in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_writes_nothing(compared):
    out, _ = compared
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    done = in_process("rivals", out, "--methods", "z-score", "cevae", "--dry-run")
    assert done.returncode == 0
    assert "would fit 2 methods on 9 controls, map 5 subjects with each" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_the_scores_can_be_those_of_the_template_grid(compared):
    out, _ = compared
    done = in_process("rivals", out, "--methods", "intensity", "--device", "cpu", "--set", "evaluation.space=template")
    assert done.returncode == 0, done.stderr
    assert float(_rows(out)[0]["value"]) > 0
    refused = in_process("rivals", out, "--methods", "intensity", "--set", "models.detector.nu=0.3")
    assert refused.returncode == 2
    assert "settings of models differ from those of the run" in refused.stderr
    # Back to native space, for the tests below.
    assert in_process("rivals", out, "--methods", "intensity", "z-score", "--device", "cpu").returncode == 0


def test_other_scans_are_not_mixed_with_those_of_before(compared):
    out = OutputFolder(compared[0])
    before = _times(out.root)
    done = in_process("rivals", out.root, "--methods", "z-score", "--device", "cpu", "--seed", "5")
    assert done.returncode == 0, done.stderr
    after = _times(out.root)
    assert all(before[path] != after[path] for path in before if "z-score" in path.parts)
    assert all(before[path] == after[path] for path in before if "intensity" in path.parts)


def test_a_method_with_weights_of_the_site_is_fitted_anew_where_they_change(compared, tmp_path):
    out, weights = compared[0], tmp_path / "resnet34.safetensors"
    torch.manual_seed(0)
    save_file({name: value.clone() for name, value in ResNetFeatures.empty().state_dict().items()}, weights)
    words = ("rivals", out, "--methods", "feature-inversion", "intensity", "--device", "cpu")
    done = in_process(*words, "--encoder-weights", weights)
    assert done.returncode == 0, done.stderr
    before = _times(out)
    assert in_process(*words, "--encoder-weights", weights).returncode == 0
    assert _times(out) == before
    assert not list((out / "rivals").rglob("feature-inversion-encoder*"))
    assert in_process(*words).returncode == 0
    after = _times(out)
    assert list((out / "rivals").rglob("feature-inversion-encoder*"))
    assert all(before[path] != after[path] for path in before if "feature-inversion" in path.parts)
    assert all(before[path] == after[path] for path in before if "intensity" in path.parts)


def test_remove_deletes_what_the_methods_made_of_a_subject(compared):
    out = OutputFolder(compared[0])
    assert [path for path in out.rivals.rglob("*") if "patient003" in path.name]
    assert in_process("remove", out.root, "patient003").returncode == 0
    assert not [path for path in out.rivals.rglob("*") if "patient003" in path.name]
    assert not (out.rivals / "report" / "index.html").exists()
    done = in_process("rivals", out.root, "--methods", "intensity", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert "patient003" not in (out.rivals / "report" / "index.html").read_text(encoding="utf-8")
