"""Complete runs through the command line, from raw scans to report, on small phantoms with known lesions."""

import csv
import filecmp
import html
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage, stats
from voxout.data_manifests.cohort.manifest import read_manifest
from voxout.data_manifests.cohort.output_paths import OutputFolder
from voxout.data_manifests.cohort.splits import split_controls
from voxout.data_manifests.images.volume import read_grid, read_mask, read_volume, write_volume
from voxout.data_manifests.synthetic.phantoms import small_cohort
from voxout.evaluation.report.html import number_text
from voxout.pipeline.config.config import load_config
from voxout.pipeline.model.whole_model import FORMAT
from voxout.preprocessing.intensity.channels import Channels
from voxout.preprocessing.intensity.standardisation import IntensityScale
from voxout.preprocessing.patches.volume_store import VolumeStore
from voxout.preprocessing.prepared_images import PreparedImages

from .commands import ONE_THREAD, as_process, command_line, in_process
from .planted_name import NAME, places_of_name, plant_in_header

SETTINGS = """
preprocessing:
  spacing_mm: 4.0
  modalities: [t1w, flair]
  bias_field: {working_spacing_mm: 16.0}
  registration: {transform: affine, working_spacing_mm: 4.0, smallest_similarity: 0.2}
models:
  encoder: {patch_size_mm: 12.0, latent_size: 8}
  guidance: {nu: 0.3}
  training: {pretraining_steps: 50, guided_steps: 10, patches_per_step: 256, checkpoint_every: 20}
evaluation: {bootstrap_draws: 50}
"""
BROKEN = {
    "sub-control002": "is truncated or damaged",
    "sub-control004": "NaN or infinite",
    "sub-control006": "brain mask",
    "sub-control008": "qform",
    "sub-control010": "registration failed: the warped brain overlaps the template's with Dice 0.",
}


pytestmark = pytest.mark.usefixtures("warm_workers")


def _words(name: str, cohort: Path, out: Path, *more: object) -> list[object]:
    return [name, cohort, out, "--config", cohort.parent / "settings.yaml", "--device", "cpu", "--jobs", "2", *more]


def _voxout(name: str, cohort: Path, out: Path, *more: object) -> subprocess.CompletedProcess[str]:
    return in_process(*_words(name, cohort, out, *more))


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Path:
    """Fourteen controls, five of them broken (truncated, NaN, empty mask, contradictory orientation, mask with the
    skull), and two patients."""
    folder = tmp_path_factory.mktemp("cohort") / NAME
    path = small_cohort(folder, controls=13, held_out=1, patients=2, seed=3, modalities=("t1w", "flair"))
    (folder / "settings.yaml").write_text(SETTINGS)
    manifest = read_manifest(path)
    for file in (file for record in manifest for file in record.files.values()):
        plant_in_header(file)
    truncated, with_nan, unmasked, flipped, too_wide = (manifest[key] for key in BROKEN)
    scan = truncated.images["t1w"]
    scan.write_bytes(scan.read_bytes()[: scan.stat().st_size // 2])
    image = nib.load(with_nan.images["t1w"])
    voxels = image.get_fdata()
    voxels[5, 5, 5] = np.nan
    nib.Nifti1Image(voxels.astype(np.float32), image.affine).to_filename(with_nan.images["t1w"])
    mask = read_mask(unmasked.brain_mask)
    write_volume(unmasked.brain_mask, mask.with_voxels(np.zeros_like(mask.voxels)))
    mask = read_mask(too_wide.brain_mask)
    write_volume(too_wide.brain_mask, mask.with_voxels(ndimage.binary_dilation(mask.voxels, iterations=2)))
    image = nib.load(flipped.images["t1w"])
    image.set_sform(image.affine @ np.diag([-1, 1, 1, 1]), code=1)
    image.set_qform(image.get_qform(), code=1)
    image.to_filename(flipped.images["t1w"])
    return path


@pytest.fixture(scope="module")
def finished(cohort, tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    out = tmp_path_factory.mktemp("first") / "out"
    return out, as_process(*_words("run", cohort, out))


def test_a_broken_scan_fails_alone(finished):
    out, result = finished
    assert result.returncode == 3, result.stdout + result.stderr
    reasons = {row["subject"]: row["reason"] for row in csv.DictReader((out / "failures.csv").open())}
    assert list(reasons) == list(BROKEN)
    for key, words in BROKEN.items():
        assert words in reasons[key]
    assert "Traceback" not in result.stderr


def test_the_intensity_scale_is_learnt_on_training_controls_and_saved_with_the_model(finished, cohort):
    out, folder = OutputFolder(finished[0]), finished[0]
    manifest = read_manifest(cohort)
    split = split_controls(manifest, held_out_share=0.2, seed=0)
    train = [manifest[key] for key in split.train if key not in BROKEN]
    modalities = ("t1w", "flair")
    images = [PreparedImages.from_record(subject, out, modalities) for subject in train]
    learnt = IntensityScale.learn("nyul", modalities, images, read_grid(out.prepared_image(train[0], "t1w")))
    assert Channels.load(folder / "detectors") == Channels.load(folder / "patches")
    assert Channels.load(folder / "detectors").scale == learnt
    others = [PreparedImages.from_record(manifest[key], out, modalities) for key in ("sub-patient001", *split.held_out)]
    more = IntensityScale.learn("nyul", modalities, [*images, *others], read_grid(images[0].brain_mask))
    assert more != learnt, "other subjects would have changed it"


def test_quality_is_reported_for_all_subjects(finished):
    """Failures are listed with their reason; warnings are shown on the subject's page and the cohort page."""
    out, result = finished
    with (out / "report" / "tables" / "quality.csv").open(newline="") as file:
        rows = {row["subject"]: row for row in csv.DictReader(file)}
    assert len(rows) == 16
    *unreadable, misregistered = BROKEN
    for key in unreadable:
        assert rows[key]["verdict"] == "not prepared" and BROKEN[key] in rows[key]["reasons"]
    failed = rows[misregistered]
    assert failed["verdict"] == "fail" and failed["reasons"].startswith(BROKEN[misregistered])
    assert next(iter(rows)) == misregistered and "brain_overlap" in failed["outside_limits"]
    warned = [key for key, row in rows.items() if row["verdict"] == "warn"]
    assert "sub-patient001" in warned, "phantoms fit the template less well than real heads"
    page = (out / "report" / "subjects" / "sub-patient001.html").read_text()
    for text in (page, (out / "report" / "index.html").read_text(), result.stdout):
        assert rows["sub-patient001"]["reasons"].split("; ")[0] in html.unescape(text)


def test_lesions_score_higher_than_healthy_tissue(finished):
    out, _ = finished
    scores = json.loads((out / "scores" / "scores.json").read_text())
    assert scores["auroc"]["value"] > 0.75
    assert scores["average_precision"]["value"] > 3 * scores["prevalence"]["value"]


def test_the_threshold_is_set_on_the_training_controls(finished):
    """Their null maps have at most the allowed number of clusters per brain, and more at a lower threshold."""
    from skimage.measure import label

    out = OutputFolder(finished[0])
    store, settings = VolumeStore.open(out.patches), load_config(out.config).evaluation
    point = json.loads(out.operating_point.read_text())
    null = {path.stem: np.load(path)[:, 0] for path in (out.latents / "null").glob("*.npy")}
    assert point["n_healthy"] == len(null) == len(json.loads(out.trained_on.read_text()))
    smallest = settings.smallest_cluster_mm3 / store.grid.grid.voxel_volume_mm3 - 1e-6

    def clusters(threshold):
        flagged = [store.grid.inverse_transform(z >= threshold, False) for z in null.values()]
        sizes = [np.bincount(label(f, connectivity=3).ravel())[1:] for f in flagged]
        return np.mean([(size >= smallest).sum() for size in sizes])

    threshold = np.float32(point["threshold"])
    assert clusters(threshold) <= settings.false_clusters < clusters(threshold - 0.5)
    scores = json.loads((out.scores / "scores.json").read_text())
    assert scores["healthy_threshold"]["value"] == pytest.approx(point["threshold"])
    assert scores["about"]["threshold_from"] == "the model's training controls"
    assert scores["false_clusters_per_healthy_subject"]["value"] is not None, "held-out controls validate the threshold"


def test_native_maps_have_the_grids_of_the_scans(finished, cohort):
    out, _ = finished
    for patient in read_manifest(cohort).patients:
        anat = out / "maps" / patient.key / "anat"
        grid = read_grid(anat / f"{patient.key}_space-orig_desc-anomaly_zmap.nii.gz")
        scan = read_grid(patient.images["t1w"])
        assert grid.size_vox == scan.size_vox
        assert np.allclose(grid.affine, scan.affine, atol=1e-4)
        assert (grid.qform_code, grid.sform_code) == (scan.qform_code, scan.sform_code)
        covered = read_mask(anat / f"{patient.key}_space-orig_desc-coverage_mask.nii.gz").voxels
        brain = read_mask(patient.brain_mask).voxels
        assert covered[brain].mean() > 0.8
        assert brain[covered].mean() > 0.9


def test_lesions_are_on_the_correct_side(finished, cohort):
    """A lesion scores higher than its mirror image."""
    out, _ = finished
    own, mirrored = [], []
    for patient in read_manifest(cohort).patients:
        path = out / "maps" / patient.key / "anat" / f"{patient.key}_space-orig_desc-anomaly_zmap.nii.gz"
        scores, lesion = read_volume(path), read_mask(patient.lesion_mask).voxels
        axis = next(i for i, code in enumerate(scores.grid.orientation) if code in "LR")
        own.append(scores.voxels[lesion].mean())
        mirrored.append(np.flip(scores.voxels, axis)[lesion].mean())
    assert np.mean(own) > np.mean(mirrored)


def test_the_report_is_self_contained(finished):
    out, _ = finished
    page = (out / "report" / "index.html").read_text(encoding="utf-8")
    assert all(key in page for key in BROKEN)
    assert "sub-patient001" in page
    assert 'src="http' not in page and 'href="http' not in page


def test_every_mapped_subject_has_a_page_with_its_clusters(finished):
    out, _ = finished
    rows = {row["subject"]: row for row in csv.DictReader((out / "scores" / "scores.csv").open())}
    pages = out / "report" / "subjects"
    assert {page.stem for page in pages.glob("*.html")} == set(rows)
    gathered = list(csv.DictReader((out / "report" / "tables" / "clusters.csv").open()))
    index = (out / "report" / "index.html").read_text(encoding="utf-8")
    for key, row in rows.items():
        page = (pages / f"{key}.html").read_text(encoding="utf-8")
        assert 'src="http' not in page and 'href="http' not in page and len(page) < 4e6
        assert f'href="subjects/{key}.html"' in index
        listed = [line for line in gathered if line["subject"] == key]
        assert len(listed) == int(row["clusters"])
        assert listed == list(csv.DictReader((pages / f"{key}_clusters.csv").open()))
    for line in gathered:
        # Inside the template's brain, on the side given by the x coordinate.
        place = [float(line[f"{axis}_mni_mm"]) for axis in "xyz"]
        assert np.abs(place).max() < 110
        assert line["side"] == ("midline" if abs(place[0]) < 3 else "right" if place[0] > 0 else "left")


@pytest.mark.slow
def test_a_broken_map_loses_one_page_and_a_deleted_page_is_written_again(finished, cohort, tmp_path):
    out = tmp_path / "copy"
    shutil.copytree(finished[0], out)
    pages = out / "report" / "subjects"
    lost = pages / "sub-patient001.html"
    lost.unlink()
    before = {page: page.stat().st_mtime_ns for page in pages.glob("*.html")}
    result = _voxout("report", cohort, out)
    assert lost.is_file() and result.returncode == 3  # the four broken scans
    assert before == {page: page.stat().st_mtime_ns for page in pages.glob("*.html") if page != lost}

    # Damaged without a change of size, which is found only when the file is read.
    broken = out / "maps" / "sub-patient001" / "anat" / "sub-patient001_space-orig_desc-anomaly_zmap.nii.gz"
    broken.write_bytes(b"\x1f\x8b" + bytes(broken.stat().st_size - 2))
    lost.unlink()
    result = _voxout("report", cohort, out)
    assert result.returncode == 3 and "Traceback" not in result.stderr
    assert not lost.is_file() and len(list(pages.glob("*.html"))) == len(before)
    failures = {row["subject"]: row for row in csv.DictReader((out / "failures.csv").open())}
    assert failures["sub-patient001"]["stage"] == "report"
    assert "damaged" in failures["sub-patient001"]["reason"]
    assert "subjects/sub-patient001.html" not in (out / "report" / "index.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_reference_runs_are_shown_in_the_report(finished, cohort, tmp_path):
    out = tmp_path / "copy"
    shutil.copytree(finished[0], out)
    result = _voxout("report", cohort, out, "--runs", f"first={finished[0]}", str(tmp_path / "nowhere"))
    assert result.returncode == 2 and "nowhere: holds no scores.json" in result.stderr
    result = _voxout("report", cohort, out, "--runs", f"first={finished[0]}")
    assert result.returncode == 3, result.stderr
    assert 'id="compared"' in (out / "report" / "index.html").read_text(encoding="utf-8")
    runs = {row["run"] for row in csv.DictReader((out / "report" / "tables" / "runs.csv").open())}
    assert runs == {"this run", "first"}


def test_a_second_run_skips_finished_stages(finished, cohort):
    out, _ = finished
    maps = {path: path.stat().st_mtime_ns for path in (out / "maps").rglob("*.nii.gz")}
    result = _voxout("run", cohort, out)
    for stage in ("extract", "train", "fit", "map", "score"):
        assert f"{stage}: up to date, skipped" in result.stdout, result.stdout
    assert maps == {path: path.stat().st_mtime_ns for path in (out / "maps").rglob("*.nii.gz")}


@pytest.mark.slow
def test_a_deleted_stage_runs_again_with_later_stages(finished, cohort, tmp_path):
    out = tmp_path / "copy"
    shutil.copytree(finished[0], out)
    before = (out / "scores" / "scores.json").read_text()
    shutil.rmtree(out / "detectors")
    result = _voxout("run", cohort, out)
    assert "train: up to date, skipped" in result.stdout
    for stage in ("fit", "map", "score", "report"):
        assert f"{stage}: up to date" not in result.stdout
    assert "fit: fit and calibrate the scorers" in result.stdout
    assert "because some of its files are missing" in result.stdout
    assert (out / "scores" / "scores.json").read_text() == before


@pytest.mark.slow
def test_a_killed_run_resumes_with_the_same_result(finished, cohort, tmp_path):
    first, out = finished[0], tmp_path / "killed"
    shutil.copytree(first, out)
    for stage in ("encoder", "detectors", "latents", "maps", "scores", "report"):
        shutil.rmtree(out / stage)
    (out / "records" / "train.json").unlink()
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    command = command_line(*_words("run", cohort, out))
    run = subprocess.Popen(command, **silent, env=ONE_THREAD, start_new_session=True)
    give_up = time.monotonic() + 400
    trained = ".building/train/encoder/step-*.safetensors"
    while not list(out.glob(trained)) and time.monotonic() < give_up:
        time.sleep(0.05)
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    assert list(out.glob(trained)) and not (out / "encoder").exists() and not (out / "records" / "train.json").exists()
    result = _voxout("run", cohort, out)
    assert result.returncode == 3, result.stderr  # the broken scans
    assert "extract: up to date" in result.stdout
    names = sorted(path.relative_to(first) for path in (first / "maps").rglob("*.nii.gz"))
    assert names
    assert not (out / ".building").exists() and not (out / ".scratch").exists()
    different = [str(n) for n in names if not filecmp.cmp(first / n, out / n, shallow=False)]
    assert different == []
    assert (out / "scores" / "scores.csv").read_text() == (first / "scores" / "scores.csv").read_text()


@pytest.mark.slow
def test_an_encoder_that_no_scorer_uses_is_kept(finished, cohort, new_cohort, tmp_path):
    """A trained encoder is not lost by a run without it."""
    out = tmp_path / "copy"
    shutil.copytree(finished[0], out)
    result = _voxout("run", cohort, out, "--set", "models.ensemble.scorers=[intensity, derived_features]")
    assert result.returncode == 3, result.stdout + result.stderr  # the broken scans
    assert "train: skipped: no scorer uses the encoder" in result.stdout
    page = (out / "report" / "index.html").read_text(encoding="utf-8")
    assert "One-class SVM" not in page and "Reconstruction error" not in page

    # Such a model is copied without an encoder.
    for name in ("detectors", "records"):
        shutil.copytree(out / name, tmp_path / "model" / name)
    result = _apply(tmp_path / "model", new_cohort, tmp_path / "applied")
    assert result.returncode == 0, result.stdout + result.stderr

    scorers = json.dumps(load_config(OutputFolder(finished[0]).config).models.ensemble.scorers)
    result = _voxout("run", cohort, out, "--set", f"models.ensemble.scorers={scorers}")
    assert "train: up to date, skipped" in result.stdout
    assert "fit: fit and calibrate the scorers" in result.stdout
    maps = [path.relative_to(out) for path in (out / "maps").rglob("*.nii.gz")]
    assert maps and all(filecmp.cmp(finished[0] / path, out / path, shallow=False) for path in maps)


@pytest.mark.slow
def test_a_second_seed_trains_a_second_encoder_and_gives_their_standard_deviation(finished, cohort, tmp_path):
    out = OutputFolder(tmp_path / "copy")
    shutil.copytree(finished[0], out.root)
    assert not list(out.maps.rglob("*desc-spread*")), "a single encoder has no standard deviation"
    checkpoint = next(out.encoder.glob("step-*.safetensors"))
    before = checkpoint.stat().st_mtime_ns
    result = _voxout("run", cohort, out.root, "--seeds", "2")
    assert result.returncode == 3, result.stdout + result.stderr  # the broken scans
    assert (
        "train: train the patch encoder, guided by a one-class SVM (because models.ensemble.members was 1, is now 2)"
        in (result.stdout)
    )
    assert checkpoint.stat().st_mtime_ns == before, "the first encoder is kept"
    assert list(out.member(1).glob("step-*.safetensors"))
    subject = read_manifest(cohort)["sub-patient001"]
    spread, z = read_volume(out.spread_map(subject)), read_volume(out.native_map(subject))
    covered = read_mask(out.native_coverage(subject)).voxels
    assert spread.grid.same_as(z.grid) and not spread.voxels[~covered].any()
    assert 0.01 < spread.voxels[covered].mean() < 1
    assert (read_volume(OutputFolder(finished[0]).native_map(subject)).voxels != z.voxels)[covered].mean() > 0.9

    # As left by a run of three seeds that was killed.
    record = json.loads(out.record("train").read_text())
    building = out.root / ".building" / "train"
    shutil.copytree(out.encoder, building / "encoder")
    (building / ".inputs.json").write_text(json.dumps(record["inputs"] | {"settings.models.ensemble.members": 3}))
    shutil.rmtree(out.encoder)
    out.record("train").unlink()
    result = _voxout("run", cohort, out.root, "--seeds", "1")
    assert checkpoint.stat().st_mtime_ns == before and not out.member(1).exists()
    maps = [path.relative_to(out.root) for path in out.maps.rglob("*.nii.gz")]
    assert maps and all(filecmp.cmp(finished[0] / path, out.root / path, shallow=False) for path in maps)


def test_a_model_of_another_version_is_refused_and_fitted_again(finished, cohort, tmp_path, new_cohort):
    out = OutputFolder(tmp_path / "model")
    shutil.copytree(finished[0], out.root)
    record = json.loads(out.record("fit").read_text())
    del record["inputs"]["the format of models"]
    out.record("fit").write_text(json.dumps(record))
    result = _apply(out.root, new_cohort, tmp_path / "applied")
    assert result.returncode == 2
    assert f"its model was fitted by another version of voxout (format 1, expected {FORMAT})" in result.stderr
    assert not (tmp_path / "applied" / "prepared").exists(), "refused before any output"
    result = _voxout("run", cohort, out.root, "--dry-run")
    assert "fit: would run, because the format of models is new" in result.stdout


def test_a_changed_setting_is_named(finished, cohort):
    result = _voxout("run", cohort, finished[0], "--set", "models.detector.nu=0.2", "--dry-run")
    assert "train: up to date" in result.stdout
    assert "fit: would run, because models.detector.nu was 0.1, is now 0.2" in result.stdout


@pytest.fixture(scope="module")
def model(finished, tmp_path_factory) -> Path:
    """The files of a run that `apply` needs; no scans."""
    folder = tmp_path_factory.mktemp("model") / "model"
    for name in ("encoder", "detectors", "records"):
        shutil.copytree(finished[0] / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def new_cohort(cohort) -> Path:
    """The patients, and a training control of the model."""
    rows = list(csv.DictReader(cohort.open()))
    path = cohort.parent / "new.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(row for row in rows if row["group"] == "patient" or row["subject_id"] == "control001")
    return path


def _apply(model: Path, *more: object) -> subprocess.CompletedProcess[str]:
    return in_process("apply", model, *more, "--device", "cpu")


def test_apply_maps_new_subjects_with_the_model(finished, model, new_cohort, tmp_path):
    result = _apply(model, new_cohort, tmp_path / "out")
    assert result.returncode == 0, result.stdout + result.stderr
    maps = sorted((tmp_path / "out" / "maps").rglob("*desc-anomaly_zmap.nii.gz"))
    assert {path.name.split("_")[0] for path in maps} == {"sub-patient001", "sub-patient002"}
    for path in maps:
        assert filecmp.cmp(finished[0] / path.relative_to(tmp_path / "out"), path, shallow=False)
    assert "sub-control001: left out, since the model was trained on this scan" in result.stdout
    # No scan of the new cohort is healthy: the threshold is that of the model.
    first, new = (json.loads((out / "scores" / "scores.json").read_text()) for out in (finished[0], tmp_path / "out"))
    assert new["about"]["threshold_from"] == "the model's training controls"
    assert new["healthy_threshold"] == first["healthy_threshold"]
    assert new["dice_at_healthy_threshold"]["value"] is not None
    assert not (tmp_path / "out" / "records" / "operating_point.json").exists()


@pytest.mark.slow
def test_maps_are_adjusted_for_covariates_also_if_one_is_missing(finished, cohort, new_cohort, tmp_path):
    out = OutputFolder(tmp_path / "copy")
    shutil.copytree(finished[0], out.root)
    adjusted = "models.ensemble.covariates=[age]"
    refused = _voxout("run", cohort, out.root, "--set", "models.ensemble.covariates=[site]")
    assert refused.returncode == 2
    assert "models.ensemble.covariates names site, and site is" in refused.stderr, "refused before any output"
    result = _voxout("run", cohort, out.root, "--set", adjusted)
    assert result.returncode == 3, result.stdout + result.stderr  # the broken scans
    assert "train: up to date, skipped" in result.stdout

    rows = [row for row in csv.DictReader(new_cohort.open()) if row["group"] == "patient"]
    rows[0]["age"], rows[1]["age"] = "", "5"
    path = cohort.parent / "aged.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    applied = OutputFolder(tmp_path / "applied")
    result = _apply(out.root, path, applied.root)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "sub-patient001: age is not given, so the map is adjusted to the controls' mean age" in result.stdout
    assert "sub-patient002: age 5 lies outside the controls'" in result.stdout
    for patient in read_manifest(path).patients:
        ours, theirs = (read_volume(folder.native_map(patient)).voxels for folder in (applied, out))
        assert np.isfinite(ours).all() and (ours != theirs).any()


@pytest.mark.slow
def test_p_and_q_maps_are_written_on_request(finished, model, new_cohort, tmp_path):
    out = OutputFolder(tmp_path / "out")
    assert not list(finished[0].rglob("*_log?map.nii.gz"))
    result = _apply(model, new_cohort, out.root, "--set", "evaluation.p_maps=true")
    assert result.returncode == 0, result.stdout + result.stderr
    subject = read_manifest(new_cohort)["sub-patient001"]
    maps = {
        out.template_map(subject): out.template_coverage(subject),
        out.native_map(subject): out.native_coverage(subject),
    }
    for path, coverage in maps.items():
        z, covered = read_volume(path), read_mask(coverage).voxels
        p, q = (read_volume(p_map) for p_map in out.p_maps(path))
        assert p.grid.same_as(z.grid) and q.grid.same_as(z.grid)
        np.testing.assert_allclose(10.0 ** -p.voxels[covered], stats.norm.sf(z.voxels[covered]), rtol=1e-4)
        expected = stats.false_discovery_control(stats.norm.sf(z.voxels[covered].astype(np.float64)))
        np.testing.assert_allclose(10.0 ** -q.voxels[covered], expected, rtol=1e-4)
        assert not p.voxels[~covered].any() and not q.voxels[~covered].any()
    # The page reports the voxels of the q-map.
    q, z = read_volume(out.p_maps(out.native_map(subject))[1]).voxels, read_volume(out.native_map(subject)).voxels
    survives = q >= -np.log10(0.05)
    messages = (
        f"the voxels at or above {number_text(z[survives].min())} survive at 5 %"
        if survives.any()
        else "at 5 % no voxel survives"
    )
    assert messages in out.subject_page(subject).read_text(encoding="utf-8")

    result = _apply(model, new_cohort, out.root, "--set", "evaluation.p_maps=false")
    assert result.returncode == 0 and not list(out.root.rglob("*_log?map.nii.gz"))


def test_apply_refuses_other_settings_than_the_models(model, new_cohort, tmp_path):
    result = _apply(model, new_cohort, tmp_path / "out", "--set", "preprocessing.spacing_mm=3")
    assert result.returncode == 2
    assert "settings of preprocessing differ from those the model was fitted with" in result.stderr
    assert not (tmp_path / "out" / "records").exists()


def test_apply_refuses_a_model_with_an_encoder_of_another_run(model, new_cohort, tmp_path):
    shutil.copytree(model, tmp_path / "model")
    path = tmp_path / "model" / "records" / "train.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"started": "later"}))
    result = _apply(tmp_path / "model", new_cohort, tmp_path / "out")
    assert result.returncode == 2
    assert "the encoder was trained again after fit" in result.stderr


@pytest.mark.slow
def test_apply_reports_why_a_model_has_no_valid_threshold(model, new_cohort, tmp_path):
    shutil.copytree(model, tmp_path / "model")
    out = tmp_path / "out"
    result = _apply(tmp_path / "model", new_cohort, out, "--set", "evaluation.false_clusters=3")
    assert result.returncode == 0, result.stdout + result.stderr
    assert (
        "the model's threshold is not valid here: it was set with evaluation.false_clusters 1.0, now 3.0"
        in result.stdout
    )
    scores = json.loads((out / "scores" / "scores.json").read_text())
    assert "not valid here" in scores["healthy_threshold"]["reason_undefined"]
    (tmp_path / "model" / "records" / "operating_point.json").unlink()
    result = _apply(tmp_path / "model", new_cohort, out)
    assert "the model has no threshold" in result.stdout
    assert "score: score the maps against the lesion masks (because" in result.stdout


def test_apply_refuses_a_model_with_a_part_missing(model, new_cohort, tmp_path):
    shutil.copytree(model, tmp_path / "model")
    (tmp_path / "model" / "detectors" / "ocsvm" / "whitening.safetensors").unlink()
    result = _apply(tmp_path / "model", new_cohort, tmp_path / "out")
    assert result.returncode == 2
    assert "files are missing" in result.stderr


@pytest.mark.slow
def test_unlisted_subjects_stay_until_removed_and_a_withdrawn_mask_is_deleted(finished, cohort, tmp_path):
    out = tmp_path / "copy"
    shutil.copytree(finished[0], out)
    rows = [row for row in csv.DictReader(cohort.open()) if row["subject_id"] != "patient001"]
    for row in rows:
        row["lesion_mask"] = ""
    smaller = cohort.parent / "smaller.csv"
    with smaller.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    for name in ("check", "prepare", "map", "score", "report"):
        result = _voxout(name, smaller, out)
        assert result.returncode == 3, result.stdout + result.stderr
        assert (out / "failures.csv").exists(), "failures are kept when a single stage runs"
    assert not list((out / "prepared" / "sub-patient002").rglob("*lesion*"))
    # Subjects of earlier calls are in the scores and on the page, with their earlier lesion masks.
    with (out / "scores" / "scores.csv").open() as file:
        volumes = {row["subject"]: row.get("lesion_volume_ml") for row in csv.DictReader(file)}
    assert {"sub-patient001", "sub-patient002"} <= volumes.keys()
    page = out / "report" / "subjects" / "sub-patient001.html"
    assert page.is_file() and page.name in (out / "report" / "index.html").read_text(encoding="utf-8")

    mine = out / "maps" / "sub-patient001" / "anat" / "notes.txt"
    mine.write_text("mine")
    result = in_process("remove", out, "patient001")
    assert result.returncode == 0, result.stdout + result.stderr
    left = [path for path in out.rglob("*patient001*") if path.is_file()]
    assert left == [] and mine.read_text() == "mine"
    assert list((out / "maps" / "sub-patient002").rglob("*.nii.gz"))
    _voxout("run", smaller, out)
    assert "sub-patient001" not in (out / "report" / "index.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_second_apply_keeps_earlier_patients_and_the_threshold_of_the_model(finished, model, new_cohort, tmp_path):
    rows = [row for row in csv.DictReader(new_cohort.open()) if row["group"] == "patient"]
    out = tmp_path / "out"
    pages = out / "report" / "subjects"
    for number, row in enumerate(rows[:2]):
        # One healthy scan of the new cohort must not replace the threshold of the model.
        table = new_cohort.parent / f"visit{number}.csv"
        with table.open("w", newline="") as file:
            writer = csv.DictWriter(file, row)
            writer.writeheader()
            writer.writerow(row if number else row | {"group": "control", "lesion_mask": "", "subject_id": "healthy"})
        result = _apply(model, table, out, "--set", "evaluation.keep_scan_places=true")
        assert result.returncode == 0, result.stdout + result.stderr
        scores = json.loads((out / "scores" / "scores.json").read_text())
        assert scores["about"]["threshold_from"] == "the model's training controls"
    assert {path.stem for path in pages.glob("*.html")} == {"sub-healthy", f"sub-{rows[1]['subject_id']}"}
    index = (out / "report" / "index.html").read_text(encoding="utf-8")
    assert all(page.name in index for page in pages.glob("*.html"))
    earlier = pages / "sub-healthy.html"
    assert "show the scan as it was given" in earlier.read_text(encoding="utf-8"), "found again"
    place = Path(json.loads((out / "records" / "scans.json").read_text())["scans"]["sub-healthy"]["t1w"])
    moved = place.rename(place.with_name("moved.nii.gz"))
    assert _apply(model, table, out).returncode == 0
    moved.rename(place)
    assert "The scan is no longer where it was when it was mapped" in earlier.read_text(encoding="utf-8")
    result = _apply(model, table, out, "--set", "evaluation.recalibrate=true")
    assert result.returncode == 2
    assert "found 1 healthy scan with a map, expected at least 20" in result.stderr
    assert all(page.is_file() for page in pages.glob("*.html")) and (out / "scores" / "scores.json").is_file()


def test_a_refused_setting_changes_no_file(finished, cohort, tmp_path):
    out = tmp_path / "copy"
    shutil.copytree(finished[0], out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file() and path.name != "log.jsonl"}
    refused = (
        ("run", "--set", "models.ensemble.covariates=[sex]"),
        ("fit", "--set", "models.ensemble.covariates=[sex]"),
        ("report", "--runs", "x=/nonexistent"),
    )
    for command, *more in refused:
        assert _voxout(command, cohort, out, *more).returncode == 2
    changed = [str(path) for path, content in before.items() if not path.is_file() or path.read_bytes() != content]
    # `run` checks the scans again and retries the preparation that failed.
    again = ("records/check.json", "records/prepare.json", "prepared/sub-control010/record.json")
    again += ("records/run.json", "status.csv", "attempts/prepare/plan.json", "attempts/prepare/sub-control010.json")
    assert [name for name in changed if not name.endswith(again)] == []


def test_outputs_contain_no_file_names_of_inputs(finished, cohort):
    names = {path.name for record in read_manifest(cohort) for path in record.files.values()}
    out, _ = finished
    kept = [out / "log.jsonl", out / "failures.csv", out / "report" / "index.html", *(out / "records").glob("*.json")]
    for path in kept:
        text = path.read_text(encoding="utf-8")
        assert not [name for name in names if name in text], path
    assert places_of_name(out) == []
