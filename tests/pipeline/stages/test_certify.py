"""Detection limits through the command line: files, resumption, and what is refused."""

import csv
import json
import os
import shutil
import signal
import subprocess
import time

import nibabel as nib
import numpy as np
import pytest
from voxout.data_manifests.cohort.output_paths import OutputFolder, beside
from voxout.data_manifests.synthetic.painted_copies import WantedLesion, paint_copy
from voxout.evaluation.certificate.painted_heads import PaintedHead
from voxout.pipeline.model.anomaly_model import AnomalyModel
from voxout.pipeline.model.painted_head import Mapper, Trial, random_of, shrinkage_of, try_head
from voxout.pipeline.stages import certify
from voxout.preprocessing.registration.template_transform import JacobianRange, TemplateTransform

from ..commands import ONE_THREAD, command_line, in_process
from .certified_run import CONFIG, MASK, SHRINKAGE, TEMPLATE, add_control, small_run

pytestmark = pytest.mark.usefixtures("warm_workers")
LESIONS = 40


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A run before it is certified; not to be changed."""
    return small_run(tmp_path_factory.mktemp("fitted") / "out")


@pytest.fixture(scope="module")
def certified(fitted, tmp_path_factory):
    """A copy of it, certified, and what the command said."""
    out = OutputFolder(shutil.copytree(fitted.root, tmp_path_factory.mktemp("certified") / "out"))
    return out, in_process("certify", out.root, "--lesions", LESIONS, "--jobs", 2)


@pytest.fixture
def out(fitted, tmp_path):
    return OutputFolder(shutil.copytree(fitted.root, tmp_path / "out"))


def lesions_of(out: OutputFolder) -> list[dict[str, str]]:
    with (out.certificate_tables / "lesions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_command_writes_page_tables_and_map(certified):
    out, result = certified
    assert result.returncode == 0, result.stdout + result.stderr
    content = json.loads(out.certificate_numbers.read_text())
    assert content["sentence"] in result.stdout and "3 healthy participants" in content["sentence"]
    rows = lesions_of(out)
    assert 100 <= len(rows) <= 3 * LESIONS and {row["subject"] for row in rows} == {
        f"sub-control{index}" for index in range(3)
    }
    assert all(0.05 <= float(row["ml"]) <= 12 for row in rows), "a voxel is 0.05 ml in the head"
    assert {"white matter"} < {row["tissue"] for row in rows} and "frontal lobe" in {row["lobe"] for row in rows}
    page = out.certificate_page.read_text()
    assert "3 healthy participants: intervals over so few are uncertain" in page
    sizes = nib.nifti1.load(out.blind_spots)
    about = json.loads(beside(out.blind_spots, ".json").read_text())
    assert sizes.shape == TEMPLATE.grid.size_vox and about["Units"] == "ml" and about["Space"] == "MNI152NLin2009aSym"
    values = np.asarray(sizes.dataobj)
    assert values[MASK.brain_mask].min() > 0 and not values[~MASK.brain_mask].any()


def test_it_is_told_where_the_files_come_from(certified):
    out, _ = certified
    for path in (out.certificate_page, out.blind_spots, out.root / "certificate" / "heads" / "sub-control1.json"):
        said = in_process("describe", path)
        assert said.returncode == 0 and "measure detection limits" in said.stdout and "voxout certify" in said.stdout
    assert "sub-control1" in said.stdout


def test_strong_and_large_lesions_are_found_and_faint_small_ones_are_not(certified):
    rows = [row for row in lesions_of(certified[0]) if row["kind"] in ("dark", "bright")]
    strength = np.array([float(row["strength"]) for row in rows])
    ml, found = np.array([float(row["ml"]) for row in rows]), np.array([row["found"] == "True" for row in rows])
    easy, hard = (ml > 1.5) & (strength > 0.6), (ml < 0.3) & (strength < 0.5)
    assert easy.sum() >= 3 and hard.sum() >= 3
    assert found[easy].mean() > found[hard].mean() + 0.5


def test_a_second_call_does_nothing_and_another_seed_paints_other_lesions(certified):
    out, _ = certified
    page, before = out.certificate_page.read_bytes(), lesions_of(out)
    again = in_process("certify", out.root, "--lesions", LESIONS)
    assert "up to date, skipped" in again.stdout and out.certificate_page.read_bytes() == page
    copy = OutputFolder(shutil.copytree(out.root, out.root.parent / "other"))
    other = in_process("certify", copy.root, "--lesions", LESIONS, "--seed", 7)
    assert other.returncode == 0 and "because" in other.stdout
    assert {row["ml"] for row in lesions_of(copy)}.isdisjoint({row["x_mm"] for row in before})
    assert [row["ml"] for row in lesions_of(copy)] != [row["ml"] for row in before]


def test_after_a_kill_only_the_unfinished_heads_are_done_again(certified, out):
    heads = out.root / "certificate" / "heads"
    words = command_line("certify", out.root, "--lesions", LESIONS, "--jobs", 1)
    process = subprocess.Popen(words, env=ONE_THREAD, start_new_session=True, stdout=subprocess.DEVNULL)
    until = time.monotonic() + 300
    while not (done := sorted(heads.glob("*.record.json"))) and time.monotonic() < until and process.poll() is None:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert done and not out.certificate_page.exists(), "killed before it was finished"
    before = {path: path.read_bytes() for path in sorted(heads.glob("*.record.json"))}
    result = in_process("certify", out.root, "--lesions", LESIONS)
    assert result.returncode == 0 and f"3 of 3 subjects, {len(before)} of them up to date" in result.stdout
    assert all(path.read_bytes() == content for path, content in before.items())
    assert lesions_of(out) == lesions_of(certified[0]), "the same lesions, whenever they are painted"


def test_a_removed_subject_leaves_no_lesions(certified, tmp_path):
    out = OutputFolder(shutil.copytree(certified[0].root, tmp_path / "out"))
    assert in_process("remove", out.root, "sub-control1").returncode == 0
    assert not (out.root / "certificate" / "heads" / "sub-control1.json").exists()
    result = in_process("certify", out.root, "--lesions", LESIONS)
    assert result.returncode == 0 and {row["subject"] for row in lesions_of(out)} == {"sub-control0", "sub-control2"}


# -- one head --------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def head(fitted) -> Mapper:
    model = AnomalyModel.load(fitted, CONFIG, "cpu").with_stored_threshold(fitted)
    (subject, *_) = certify.held_out_controls(fitted)
    return Mapper.of(model, subject, fitted)


def test_the_head_itself_is_mapped_as_by_the_stage_map(head, fitted):
    _, z = head.clusters(head.brain.image, 3.0)
    stored = np.asarray(nib.nifti1.load(fitted.template_map(head.subject)).dataobj)
    scored = np.isfinite(z)
    np.testing.assert_array_equal(scored, MASK.brain_mask)
    np.testing.assert_allclose(z[scored], stored[scored], atol=1e-4)


def test_sizes_are_those_in_the_head(head):
    np.testing.assert_allclose(head.brain.shrinkage, SHRINKAGE)
    copy = paint_copy(head.brain, [WantedLesion("dark", 4.0, 1.0)], np.random.default_rng(0))
    (lesion,) = copy.lesions
    assert lesion.ml == pytest.approx(4.0, rel=0.05) and (copy.labels > 0).sum() * 0.064 == pytest.approx(5.0, rel=0.05)


def test_shrinkage_follows_the_warp():
    grid = TEMPLATE.grid
    warp = np.zeros((*grid.size_vox, 3), np.float32)
    x_mm = np.arange(grid.size_vox[0]) * 4.0
    warp[..., 0] = -0.25 * x_mm[:, None, None]  # a quarter narrower in x
    transform = TemplateTransform(np.diag([1, 1, 0.5, 1.0]), warp, -warp, grid, JacobianRange(0.7, 0.7, 0.7))
    np.testing.assert_allclose(shrinkage_of(transform, TEMPLATE.brain_mask), 0.75 * 0.5, rtol=1e-4)


def test_a_head_does_not_depend_on_other_heads_or_on_the_number_of_copies(head, fitted):
    few, more = (try_head(head.model, head.subject, fitted, Trial(number, 3, 3.0)) for number in (8, 16))
    assert isinstance(few, PaintedHead) and few.lesions == tuple(le for le in more.lesions if le.copy_number == 1)
    assert few.false_clusters == more.false_clusters and len(few.lesions) + few.left_out == 8
    first, second = (random_of(3, key, 1).random() for key in ("sub-1", "sub-2"))
    assert first != second and first == random_of(3, "sub-1", 1).random()


# -- what is refused -------------------------------------------------------------------------------------------------
def refused(*words: object) -> str:
    result = in_process("certify", *words)
    assert result.returncode == 2 and result.stderr.count("\n") == 1, result.stderr
    return result.stderr


def test_without_a_held_out_control_it_is_said_how_many_are_needed(tmp_path):
    out = small_run(tmp_path / "out", held_out=0)
    add_control(out, 0, group="patient")
    said = refused(out.root)
    assert "found no mapped healthy control that the model was not fitted to, expected at least 3, better 10" in said
    assert "held_out in the column split" in said and "data_manifests.held_out_share" in said


def test_controls_that_the_model_was_fitted_to_do_not_count(tmp_path):
    out = small_run(tmp_path / "out", held_out=2, trained_on_them=True)
    assert "found no mapped healthy control that the model was not fitted to" in refused(out.root)
    add_control(out, 5)
    assert [subject.key for subject in certify.held_out_controls(out)] == ["sub-control5"]


def test_a_folder_without_a_model_or_without_a_threshold_is_refused(out, tmp_path):
    assert "no such file or folder, expected the output folder of `voxout run`" in refused(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    assert "holds no fitted model" in refused(tmp_path / "empty")
    out.operating_point.unlink()
    assert "its model has no threshold (its cohort was not mapped yet), expected one. Finish the run" in refused(
        out.root
    )


def test_a_damaged_prepared_head_fails_alone(out):
    subject = certify.held_out_controls(out)[1]
    out.prepared_image(subject, "t1w").write_bytes(b"no image")
    result = in_process("certify", out.root, "--lesions", 16)
    assert result.returncode == 3 and f"not certified on {subject.key}" in result.stderr
    assert {row["subject"] for row in lesions_of(out)} == {"sub-control0", "sub-control2"}
    assert "Traceback" not in result.stderr
