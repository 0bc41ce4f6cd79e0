"""The library: fit, load, predict, evaluate and compare from Python, with the results and messages of the commands."""

import csv
import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import voxout
from voxout.data_manifests.cohort.output_paths import OutputFolder, beside
from voxout.data_manifests.cohort.subject import Manifest
from voxout.data_manifests.images.volume import read_map, read_mask, read_volume
from voxout.data_manifests.open_file import file_hash
from voxout.data_manifests.synthetic.phantoms import small_cohort
from voxout.evaluation.scoring.operating_point import StoredPoint
from voxout.pipeline.cli.main import main
from voxout.pipeline.provenance.describe import describe
from voxout.pipeline.workflow.records import StageRecord

from .small_run import SETTINGS, as_arguments

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def finished(warm_workers, tmp_path_factory):
    """A cohort, and the output folder of a complete `voxout run` on it."""
    folder = tmp_path_factory.mktemp("finished")
    cohort = small_cohort(folder / "cohort", controls=4, held_out=1, patients=2, seed=5)
    out = folder / "out"
    options = ["--preset", "fast", "--device", "cpu", "-q", *as_arguments(SETTINGS)]
    assert main(["run", str(cohort), str(out), *options]) == 0
    return cohort, out


@pytest.fixture(scope="module")
def model(finished):
    return voxout.load_model(finished[1], device="cpu")


def test_importing_it_imports_nothing_heavy_and_changes_no_setting():
    code = (
        "import logging, sys, warnings; before = list(warnings.filters), logging.root.handlers[:]\n"
        "import voxout\n"
        "assert (list(warnings.filters), logging.root.handlers) == before\n"
        "heavy = {'torch', 'monai', 'numpy', 'nibabel', 'pandas', 'pydantic', 'dask'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_public_name_exists():
    for name in voxout.__all__:
        assert getattr(voxout, name) is not None
    assert set(voxout.__all__) < set(dir(voxout)) and voxout.__version__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = voxout.nothing


@pytest.mark.parametrize(
    "call",
    [
        lambda: voxout.read_cohort(""),
        lambda: voxout.fit("", "out"),
        lambda: voxout.fit(Manifest(()), ""),
        lambda: voxout.fit(Manifest(()), "out", config=""),
        lambda: voxout.load_model(""),
        lambda: voxout.evaluate("maps", "", out="out"),
        lambda: voxout.evaluate("maps", "masks", out=""),
        lambda: voxout.compare("scores", ""),
    ],
)
def test_an_empty_path_is_not_the_current_folder(tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(voxout.UserError, match=r"^\w+: found an empty path, expected a file or folder\."):
        call()
    assert not list(tmp_path.iterdir())


def test_every_map_says_what_it_is_and_opens_at_the_threshold(finished):
    cohort, out = voxout.read_cohort(finished[0]), OutputFolder(finished[1])
    stored = StoredPoint.load(out.operating_point)
    for path in out.maps.rglob("*.nii.gz"):
        about = json.loads(beside(path, ".json").read_text())
        assert about["Threshold"] == stored.threshold and about["Template"] == "MNI152NLin2009aSym"
        assert about["Space"] in path.name and about["Model"]["Fit"] == stored.model
        assert str(finished[0].parent) not in json.dumps(about)
        header = nib.nifti1.load(path).header
        if "desc-anomaly_zmap" in path.name:
            assert header.get_intent()[0] == "z score" and header["cal_min"] == np.float32(stored.threshold)
    for patient in cohort.patients:
        z, labels = read_map(out.native_map(patient)), read_map(out.cluster_labels(patient, "native"))
        with beside(out.cluster_labels(patient, "native"), ".tsv").open(newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
        assert len(rows) == labels.voxels.max() == len(out.subject_clusters(patient).read_text().splitlines()) - 1
        assert (z.voxels[labels.voxels > 0] >= np.float32(stored.threshold)).all()
        for row in rows:
            index = np.linalg.inv(z.affine) @ [*(float(row[name]) for name in ("x_mm", "y_mm", "z_mm")), 1]
            peak = tuple(np.rint(index[:3]).astype(int))
            assert labels.voxels[peak] == int(row["index"])
            assert z.voxels[peak] == pytest.approx(float(row["peak_score"]), rel=1e-5)
        page, maps = (StageRecord.read(record(patient)) for record in (out.page_record, out.map_record))
        listed = {*page.outputs, *maps.outputs}
        files = {str(path.relative_to(out.root)) for path in out.map_folder(patient).iterdir()}
        assert files <= listed, "`voxout remove` deletes what the records list"
    assert "records/operating_point.json" in StageRecord.read(out.record("map")).hashes


def test_another_threshold_changes_the_headers_and_not_the_voxels(finished, tmp_path, capsys):
    """Nothing is scored again, and only the files that name the threshold are new."""
    out = OutputFolder(tmp_path / "copy")
    shutil.copytree(finished[1], out.root)
    patient = voxout.read_cohort(finished[0]).patients[0]
    before = read_map(out.native_map(patient)).voxels
    command = ["run", str(finished[0]), str(out.root), "--device", "cpu", "--set", "evaluation.false_clusters=4"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("voxout.pipeline.model.anomaly_model.AnomalyModel.load", None)
        assert main([*command, "--jobs", "1"]) == 0
    threshold = StoredPoint.load(out.operating_point).threshold
    assert threshold < StoredPoint.load(OutputFolder(finished[1]).operating_point).threshold
    stored = nib.nifti1.load(out.native_map(patient))
    assert stored.header["cal_min"] == np.float32(threshold)
    np.testing.assert_array_equal(np.asarray(stored.dataobj), before)
    last = capsys.readouterr().out.splitlines()[-2:]
    assert all(re.match(rf"sub-\S+: (\d+ clusters? above|nothing above) {threshold:.2f}", line) for line in last)


def test_predict_gives_the_maps_of_the_run(finished, model):
    """One way from a scan to its map, whether a command or a notebook asks."""
    cohort, out = voxout.read_cohort(finished[0]), OutputFolder(finished[1])
    for patient in cohort.patients:
        result = model.predict(patient)
        # To rounding: a worker of a run sums with one thread.
        np.testing.assert_allclose(result.z_map.voxels, read_volume(out.native_map(patient)).voxels, atol=1e-5)
        np.testing.assert_array_equal(result.coverage.voxels, read_mask(out.native_coverage(patient)).voxels)
        of_run = read_volume(out.template_map(patient)).voxels
        np.testing.assert_allclose(result.template_z_map.voxels, of_run, atol=1e-5)
        with out.subject_clusters(patient).open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert len(result.clusters) == len(rows)
        for (_, found), row in zip(result.clusters.iterrows(), rows, strict=True):
            assert found.peak_score == pytest.approx(float(row["peak_score"]), rel=1e-4)
            assert found.x_mni_mm == pytest.approx(float(row["x_mni_mm"]), abs=0.06)
            assert found.region == row["region"]
    assert result.threshold == json.loads((out.scores / "scores.json").read_text())["healthy_threshold"]["value"]


def test_a_path_an_image_a_tensor_and_a_subject_give_the_same_map(finished, model):
    from monai.transforms import LoadImage

    patient = voxout.read_cohort(finished[0]).patients[0]
    mask = patient.brain_mask
    of_path = model.predict(str(patient.images["t1w"]), brain_mask=mask)
    of_image = model.predict(nib.nifti1.load(patient.images["t1w"]), brain_mask=nib.nifti1.load(mask), subject_id="x1")
    np.testing.assert_array_equal(of_path.z_map.voxels, model.predict(patient).z_map.voxels)
    np.testing.assert_array_equal(of_path.z_map.voxels, of_image.z_map.voxels)
    load = LoadImage(ensure_channel_first=True)
    of_tensor = model.predict(load(patient.images["t1w"]), brain_mask=load(mask), subject_id="x1")
    np.testing.assert_array_equal(of_path.z_map.voxels, of_tensor.z_map.voxels)
    assert of_path.key == patient.key and of_image.key == "sub-x1"


def test_after_the_first_map_no_file_of_the_model_is_opened_again(finished, model):
    patient = voxout.read_cohort(finished[0]).patients[0]
    model.predict(patient)
    opened: list[str] = []
    listening = True

    def hear(event, arguments):
        if listening and event == "open":
            opened.append(str(arguments[0]))

    sys.addaudithook(hear)
    try:
        model.predict(patient)
    finally:
        listening = False
    assert any("T1w" in name for name in opened), "the hook hears"
    assert [name for name in opened if name.startswith(str(finished[1]))] == []


def test_maps_are_saved_once(finished, model, tmp_path):
    result = model.predict(voxout.read_cohort(finished[0]).patients[0])
    written = result.save(tmp_path / "map")
    assert all(path.is_file() for path in written) and written[-1].name == f"{result.key}_clusters.csv"
    assert {path.name for path in written} == {path.name for path in (tmp_path / "map").iterdir()}
    assert [path.name for path in written if "_dseg" in path.name]
    about = json.loads(beside(written[0], ".json").read_text())
    assert about["Threshold"] == result.threshold and about["Model"]["Fit"] == model.identity != ""
    stored = nib.nifti1.load(written[0])
    np.testing.assert_array_equal(np.asarray(stored.dataobj), result.z_map.voxels)
    scan = f"hash {file_hash(voxout.read_cohort(finished[0]).patients[0].images['t1w'])[:16]}"
    for path in written:
        found = describe(path)
        assert found.command == "AnomalyModel.predict" and found.began and found.seed == 0
        assert {each.name: each.value for each in found.inputs}["t1w"] == scan
    with pytest.raises(voxout.UserError, match="expected a folder without maps of sub-"):
        result.save(tmp_path / "map")


def test_fit_takes_up_a_finished_run_and_gives_its_model(finished, model, capsys):
    again = voxout.fit(finished[0], finished[1], device="cpu")
    assert "up to date, skipped" in capsys.readouterr().out
    assert again.threshold == model.threshold and again.ensemble.scorers[0].name == model.ensemble.scorers[0].name


def test_the_sentences(finished, model, tmp_path):
    patient = voxout.read_cohort(finished[0]).patients[0]
    with pytest.raises(voxout.UserError, match=r"none\.nii\.gz: no such file, expected an image"):
        model.predict(tmp_path / "none.nii.gz")
    with pytest.raises(voxout.UserError, match=r"an array of shape \(4, 4, 4\), which has no affine"):
        model.predict(np.zeros((4, 4, 4)))
    with pytest.raises(voxout.UserError, match="found a dict, expected a path"):
        model.predict({})
    far = nib.nifti1.load(patient.images["t1w"])
    moved = far.affine.copy()
    moved[:3, 3] += 300
    shifted = nib.Nifti1Image(np.asarray(far.dataobj), moved)
    with pytest.raises(voxout.UserError, match="brain mask and T1w have different grids"):
        model.predict(shifted, brain_mask=patient.brain_mask, subject_id="moved")
    with pytest.raises(voxout.UserError, match="holds no fitted model"):
        voxout.load_model(tmp_path)
    with pytest.raises(voxout.UserError, match="expected the same") as refused:
        voxout.load_model(finished[1], settings={"models.detector.nu": 0.4})
    assert "\u2068" not in str(refused.value), "no marks for names in a sentence that a user reads"
    with pytest.raises(voxout.UserError, match="letters and digits only"):
        model.predict(patient.images["t1w"], subject_id="Jane Doe")


def test_evaluate_and_compare_are_those_of_the_command_line(finished, tmp_path):
    cohort, out = voxout.read_cohort(finished[0]), OutputFolder(finished[1])
    maps = f"{out.maps}/{{id}}/anat/{{id}}_space-orig_desc-anomaly_zmap.nii.gz"
    masks = tmp_path / "masks"
    masks.mkdir()
    for patient in cohort.patients:
        (masks / f"{patient.key}_mask.nii.gz").write_bytes(patient.lesion_mask.read_bytes())
    arguments = ["--maps", maps, "--masks", str(masks), "--healthy", "sub-heldout*", "--out", str(tmp_path / "scores")]
    assert main(["evaluate", *arguments, "--set", "evaluation.bootstrap_draws=50", "-q"]) == 0
    scores = voxout.evaluate(maps, masks, healthy=["sub-heldout*"], settings={"evaluation.bootstrap_draws": 50})
    stored = json.loads((tmp_path / "scores" / "scores.json").read_text())
    assert scores.estimates["auroc"].value == pytest.approx(stored["auroc"]["value"])
    assert scores.estimates["auroc"].ci_low == pytest.approx(stored["auroc"]["ci_low"])
    voxout.evaluate(
        maps, masks, healthy=["sub-heldout*"], settings={"evaluation.bootstrap_draws": 50}, out=tmp_path / "again"
    )
    same = voxout.compare(tmp_path / "scores", tmp_path / "again")
    assert {difference.difference.value for difference in same.differences} <= {0.0, None}


def test_a_single_scan_is_applied_without_a_manifest(finished, tmp_path, capsys):
    cohort, out = voxout.read_cohort(finished[0]), OutputFolder(finished[1])
    patient = cohort.patients[1]
    scan = tmp_path / "DOE_JANE.nii.gz"
    scan.write_bytes(patient.images["t1w"].read_bytes())
    assert main(["apply", str(out.root), str(scan), str(tmp_path / "new"), "--device", "cpu"]) in (0, 3)
    (found,) = (tmp_path / "new" / "maps").glob("sub-scan*")
    assert len(found.name) == len("sub-scan") + 8
    kept = [path for path in (tmp_path / "new").rglob("*") if path.is_file()]
    assert not any(
        "DOE_JANE" in str(path.relative_to(tmp_path / "new")) or b"DOE_JANE" in path.read_bytes() for path in kept
    )


@pytest.mark.parametrize(
    ("scan", "options", "problem"),
    [
        ("T1w.nii.gz", ["--flair", "FLAIR.nii.gz"], "--flair: found a model of t1w alone, expected one that uses"),
        ("T1w.nii.gz", ["--age", "130"], "--age: found 130, expected years from 0 to 120. Correct it."),
        ("sub-1_FLAIR.nii.gz", [], "sub-1_FLAIR.nii.gz: is named as FLAIR, expected a T1w. Give the T1w; "),
        ("cohort.csv", ["--age", "8"], "--age: found a cohort, expected a single scan. Use the columns of the table."),
        ("study", ["--dicom", "--flair", "x.nii"], "--flair: found a DICOM study, expected a single scan. Choose"),
    ],
)
def test_what_is_said_of_a_single_scan_is_checked_first(finished, tmp_path, capsys, scan, options, problem):
    for name in ("T1w.nii.gz", "sub-1_FLAIR.nii.gz", "FLAIR.nii.gz", "cohort.csv"):
        (tmp_path / name).touch()
    assert main(["apply", str(finished[1]), str(tmp_path / scan), str(tmp_path / "new"), *options]) == 2
    assert f"voxout: {problem}" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_metrics_on_arrays_agree_with_scikit_learn():
    from sklearn.metrics import average_precision_score, roc_auc_score

    random = np.random.default_rng(0)
    scores, truth = random.normal(size=(9, 40)).round(1), random.random((9, 40)) < 0.2
    assert voxout.metrics.auroc(scores, truth) == pytest.approx(roc_auc_score(truth.ravel(), scores.ravel()))
    expected = average_precision_score(truth.ravel(), scores.ravel())
    assert voxout.metrics.average_precision(scores, truth) == pytest.approx(expected)
    dice, threshold = voxout.metrics.best_dice(scores, truth)
    flagged = np.float32(scores) >= np.float32(threshold)
    assert dice == pytest.approx(2 * (flagged & truth).sum() / (flagged.sum() + truth.sum()))
    with pytest.raises(voxout.UserError, match="expected the same shape"):
        voxout.metrics.auroc(scores, truth[0])
    with pytest.raises(voxout.UserError, match="hold NaN"):
        voxout.metrics.auroc(np.full((2, 2), np.nan), np.ones((2, 2), bool))


@pytest.mark.slow
def test_the_notebook_runs(tmp_path, monkeypatch):
    import matplotlib.pyplot

    matplotlib.use("Agg")
    cells = json.loads((ROOT / "examples" / "first_map.ipynb").read_text())["cells"]
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    names: dict[str, object] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    matplotlib.pyplot.close("all")
    assert float(names["result"].z_map.voxels.max()) > 3


@pytest.mark.slow
def test_the_examples_with_monai_run(finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("out").symlink_to(finished[1])
    patient = voxout.read_cohort(finished[0]).patients[0]
    Path("patient_T1w.nii.gz").write_bytes(patient.images["t1w"].read_bytes())
    names: dict[str, object] = {}
    page = (ROOT / "docs" / "monai.md").read_text()
    for code in re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL):
        exec(code, names)
    scan = nib.nifti1.load("patient_T1w.nii.gz")
    assert names["z_map"].shape == names["native"].shape == (1, *scan.shape)
    np.testing.assert_allclose(names["native"].affine, scan.affine, atol=1e-4)
    assert names["latents"].shape[2:] == names["batch"]["image"].shape[2:]


def test_the_training_loop_runs():
    curve = runpy.run_path(str(ROOT / "examples" / "own_training_loop.py"))["main"](steps=5)
    assert len(curve) == 5 and all(np.isfinite(curve))


@pytest.mark.parametrize("module", ["metrics", "ocsvm"])
def test_the_examples_of_docstrings_hold(module):
    import doctest

    result = doctest.testmod(getattr(voxout, module))
    assert result.attempted > 3 and result.failed == 0


# -- packed models -----------------------------------------------------------------------------------------------------
def test_apply_takes_a_packed_model_again_and_again(finished, tmp_path, capsys):
    cohort, out = finished
    packed, new = tmp_path / "model.voxout", tmp_path / "new"
    assert main(["model", "pack", str(out), str(packed)]) == 0
    scans = [patient.images["t1w"] for patient in voxout.read_cohort(cohort).patients]
    for scan in scans:
        assert main(["apply", str(packed), str(scan), str(new), "--device", "cpu", "-q"]) == 0
        threshold = json.loads((new / "scores" / "scores.json").read_text())["healthy_threshold"]["value"]
        assert f"above {threshold:.2f}" in capsys.readouterr().out
    # The map of the first scan is kept, as with the folder of a model.
    maps = sorted(new.glob("maps/sub-*/anat/*_space-orig_desc-anomaly_zmap.nii.gz"))
    assert len(maps) == 2 and len(list((new / "report" / "subjects").glob("*.html"))) == 2
    written = [path.stat().st_mtime_ns for path in maps]
    assert main(["apply", str(packed), str(scans[1]), str(new), "--device", "cpu", "-q"]) == 0
    assert [path.stat().st_mtime_ns for path in maps] == written
    assert not (new / ".scratch").exists() and not list(new.rglob("*.safetensors"))
    assert main(["apply", str(out), str(scans[1]), str(tmp_path / "by-folder"), "--device", "cpu", "-q"]) == 0
    (own,) = tmp_path.glob("by-folder/maps/sub-*/anat/*_space-orig_desc-anomaly_zmap.nii.gz")
    assert np.abs(read_map(own).voxels - read_map(maps[1]).voxels).max() < 0.05
    thresholds = [json.loads((run / "scores" / "scores.json").read_text())["healthy_threshold"] for run in (out, new)]
    assert thresholds[0]["value"] == thresholds[1]["value"]


def test_a_dry_run_with_a_packed_model_writes_nothing(finished, tmp_path, capsys):
    cohort, out = finished
    assert main(["model", "pack", str(out), str(tmp_path / "model.voxout")]) == 0
    capsys.readouterr()
    assert main(["apply", str(tmp_path / "model.voxout"), str(cohort), str(tmp_path / "new"), "--dry-run"]) == 0
    assert "check: would run" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["model.voxout"]


def test_an_output_folder_holds_no_packed_model(finished, tmp_path, capsys):
    cohort, out = finished
    (tmp_path / "new").mkdir()
    assert main(["model", "pack", str(out), str(tmp_path / "new" / "model.voxout")]) == 0
    assert main(["apply", str(tmp_path / "new" / "model.voxout"), str(cohort), str(tmp_path / "new")]) == 2
    assert "holds inputs (the model), expected a separate folder" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["model.voxout"]


def test_a_packed_model_predicts_after_its_temporary_folder_is_gone(finished, model, tmp_path):
    cohort, out = finished
    assert main(["model", "pack", str(out), str(tmp_path / "model.voxout")]) == 0
    packed = voxout.load_model(tmp_path / "model.voxout", device="cpu")
    (tmp_path / "model.voxout").unlink()
    scan = voxout.read_cohort(cohort).patients[0].images["t1w"]
    first, second = model.predict(scan), packed.predict(scan)
    assert np.abs(first.z_map.voxels - second.z_map.voxels).max() < 0.05
    assert first.threshold == second.threshold
