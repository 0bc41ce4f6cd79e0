"""`voxout-bids` as a whole: both levels, with and without a given model, on small phantoms."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage, stats
from voxout.data_manifests.cohort.bids import read_bids
from voxout.data_manifests.cohort.bids_selection import BidsSelection
from voxout.data_manifests.cohort.output_paths import OutputFolder, beside
from voxout.data_manifests.cohort.subject import SubjectRecord
from voxout.data_manifests.images.volume import read_grid, read_labels, read_map, read_mask, write_volume
from voxout.data_manifests.synthetic.phantoms import small_cohort
from voxout.pipeline.cli.main import main as voxout
from voxout.pipeline.workflow.records import file_fingerprint

from ..small_run import ALL_CONTROLS_FIT, SETTINGS, as_arguments
from .calls import bids, state_of, validate

AS_ARGUMENTS = as_arguments(SETTINGS | ALL_CONTROLS_FIT)
NATIVE, TEMPLATE = "space-orig", "space-MNI152NLin2009aSym"


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Path:
    """Four controls and two patients."""
    return small_cohort(tmp_path_factory.mktemp("cohort") / "bids", controls=4, patients=2, seed=5).parent


@pytest.fixture(scope="module")
def dataset(cohort, tmp_path_factory) -> Path:
    """The four controls and the first patient, read-only but for root."""
    folder = Path(shutil.copytree(cohort, tmp_path_factory.mktemp("raw") / "bids"))
    shutil.rmtree(folder / "sub-patient002")
    shutil.rmtree(folder / "derivatives" / "reference" / "sub-patient002")
    table = folder / "participants.tsv"
    table.write_text("".join(line for line in table.read_text().splitlines(True) if "patient002" not in line))
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    return folder


@pytest.fixture(scope="module")
def finished(warm_workers, dataset, tmp_path_factory) -> Path:
    """Derivatives after both levels, without a given model; one participant is prepared later than the others."""
    out, before = tmp_path_factory.mktemp("first") / "out", state_of(dataset)
    labels = [path.name.removeprefix("sub-") for path in sorted(dataset.glob("sub-*"))]
    preset = ["--preset", "fast", *AS_ARGUMENTS]
    first = bids(dataset, out, "participant", *preset, "--participant-label", *labels[1:])
    assert first.returncode == 0 and "prepared; for maps" in first.stdout, first.stdout + first.stderr
    assert not (out / f"sub-{labels[0]}").exists() and (out / f"sub-{labels[1]}").is_dir()
    second = bids(dataset, out, "participant", "--participant_label", f"sub-{labels[0]}")
    assert second.returncode == 0, second.stderr
    group = bids(dataset, out, "group")
    assert group.returncode == 0, group.stdout + group.stderr
    assert "5 of 5 subjects, 5 of them up to date" in group.stdout, "the level group prepares nothing"
    assert state_of(dataset) == before
    return out


@pytest.fixture(scope="module")
def clinic(cohort, tmp_path_factory) -> Path:
    """Two sessions of a patient with several scans and no table, and a participant whose scan was not fetched."""
    folder = tmp_path_factory.mktemp("clinic") / "bids"
    scans = [cohort / f"sub-patient00{n}" / "anat" / f"sub-patient00{n}_T1w.nii.gz" for n in (1, 2)]
    for session, names in (("pre", ["run-01_T1w.nii.gz", "run-02_T1w.nii.gz"]), ("post", ["acq-defaced_T1w.nii.gz"])):
        place = folder / "sub-07" / f"ses-{session}" / "anat"
        place.mkdir(parents=True)
        for name, scan in zip(names, scans[::-1], strict=False):
            shutil.copyfile(scan, place / f"sub-07_ses-{session}_{name}")
    (folder / "sub-08" / "anat").mkdir(parents=True)
    (folder / "sub-08" / "anat" / "sub-08_T1w.nii.gz").symlink_to("../../.git/annex/objects/a/b/k/k.nii.gz")
    about = {"Name": "clinic", "BIDSVersion": "1.10.0"}
    (folder / "dataset_description.json").write_text(json.dumps(about))
    (folder / "filter.json").write_text('{"t1w": {"run": [2, null]}}')
    return folder


@pytest.fixture(scope="module")
def applied(finished, clinic, tmp_path_factory) -> tuple[Path, list[subprocess.CompletedProcess[str]]]:
    """Derivatives after both levels with a packed model, and the calls."""
    folder = tmp_path_factory.mktemp("second")
    assert voxout(["model", "pack", str(finished / "work" / "voxout"), str(folder / "model.voxout")]) == 0
    words = [clinic, folder / "out", "participant", "--model", folder / "model.voxout"]
    chosen = ["--bids-filter-file", clinic / "filter.json", "-w", folder / "work"]
    calls = [bids(*words, *chosen[2:]), bids(*words, *chosen)]
    words[2] = "group"
    return folder / "out", [*calls, bids(*words, *chosen)]


# -- a model of its own ----------------------------------------------------------------------------------------------
def test_the_derivatives_are_valid_and_only_what_is_ignored_has_no_bids_name(finished, tmp_path):
    assert validate(finished) == {}
    about = json.loads((finished / "dataset_description.json").read_text())
    assert about["DatasetType"] == "derivative" and about["GeneratedBy"][0]["Name"] == "voxout"
    assert set(about["GeneratedBy"][0]) == {"Name", "Version"}
    bare = Path(shutil.copytree(finished, tmp_path / "bare", ignore=shutil.ignore_patterns("work", ".bidsignore")))
    refused = {Path(name).name for names in validate(bare).values() for name in names}
    assert "sub-patient001_space-orig_desc-anomaly_zmap.nii.gz" in refused
    assert not any("_probseg" in name or "_dseg" in name or "_mask" in name or "_T1w" in name for name in refused)


def test_every_subject_is_prepared_and_the_patient_is_mapped(finished):
    names = {path.name for path in (finished / "sub-control001" / "anat").iterdir()}
    images = {f"{NATIVE}_desc-brain_mask", f"{TEMPLATE}_desc-brain_mask", f"{TEMPLATE}_desc-preproc_T1w"}
    assert names == {f"sub-control001_{name}{end}" for name in images for end in (".nii.gz", ".json")}
    sidecar = finished / "sub-control001" / "anat" / f"sub-control001_{TEMPLATE}_desc-preproc_T1w.json"
    about = json.loads(sidecar.read_text())
    assert about["SkullStripped"] is True and about["Space"] == "MNI152NLin2009aSym"
    assert (finished / "sub-control001" / "figures" / "sub-control001_desc-quality.png").is_file()
    assert (finished / "report" / "index.html").is_file() and (finished / "scores" / "scores.json").is_file()
    assert (finished / "report" / "subjects" / "sub-patient001.html").is_file()


@pytest.mark.parametrize("space", [NATIVE, TEMPLATE])
def test_the_probability_is_that_of_the_z_map(finished, space):
    stem = finished / "sub-patient001" / "anat" / f"sub-patient001_{space}"
    z, p = read_map(Path(f"{stem}_desc-anomaly_zmap.nii.gz")), read_map(Path(f"{stem}_label-anomaly_probseg.nii.gz"))
    covered = read_mask(Path(f"{stem}_desc-coverage_mask.nii.gz")).voxels
    assert p.grid.same_as(z.grid) and p.grid.sform_code == z.grid.sform_code
    np.testing.assert_allclose(p.voxels[covered], stats.norm.cdf(z.voxels[covered]), atol=1e-6)
    assert (p.voxels[~covered] == 0).all() and covered.any() and not covered.all()
    assert json.loads(Path(f"{stem}_label-anomaly_probseg.json").read_text())["Units"] == "1 - p"


def test_clusters_have_the_same_numbers_and_places_in_both_spaces(finished):
    run = OutputFolder(finished / "work" / "voxout")
    patient = SubjectRecord("patient001", "patient", {})
    found = {}
    for space, like in ((NATIVE, run.native_map(patient)), (TEMPLATE, run.template_map(patient))):
        path = finished / "sub-patient001" / "anat" / f"sub-patient001_{space}_desc-clusters_dseg.nii.gz"
        labels = read_labels(path)
        assert labels.grid.same_as(read_grid(like)) and labels.voxels.dtype.kind in "iu"
        with beside(path, ".tsv").open(newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
        about = json.loads(beside(path, ".json").read_text())
        assert about["Space"] == space.removeprefix("space-")
        assert {*rows[0]} - {"index", "name"} <= {*about}, "columns are described"
        found[space] = labels, rows
    native, template = found[NATIVE][1], found[TEMPLATE][1]
    assert [row["index"] for row in native] == [row["index"] for row in template] and len(native) > 0
    hits = 0
    for labels, rows in found.values():
        for row in rows:
            point = np.linalg.inv(labels.affine) @ [*(float(row[f"{axis}_mm"]) for axis in "xyz"), 1]
            near = tuple(slice(int(i) - 1, int(i) + 2) for i in np.rint(point[:3]))
            hits += int(row["index"]) in labels.voxels[near]
    assert hits == 2 * len(native), "the peak lies in or beside its cluster"
    mm3 = {space: np.count_nonzero(v.voxels) * abs(np.linalg.det(v.affine)) for space, (v, _) in found.items()}
    assert 0.5 < mm3[NATIVE] / mm3[TEMPLATE] < 2


def test_a_second_call_does_nothing_and_repairs_what_is_missing(finished, dataset):
    image = finished / "sub-patient001" / "anat" / f"sub-patient001_{NATIVE}_label-anomaly_probseg.nii.gz"
    before = state_of(finished / "sub-patient001"), image.read_bytes()
    again = bids(dataset, finished, "group")
    assert again.returncode == 0 and again.stdout.count("up to date, skipped") >= 7, again.stdout
    assert state_of(finished / "sub-patient001") == before[0]
    image.unlink()
    assert bids(dataset, finished, "group").returncode == 0
    assert image.read_bytes() == before[1]


def test_no_path_of_the_dataset_is_in_the_derivatives(finished, dataset):
    texts = [path for path in finished.rglob("*") if path.suffix in (".json", ".tsv", ".csv", ".md") and path.is_file()]
    assert len(texts) > 30
    assert [path for path in texts if str(dataset.parent) in path.read_text()] == []


# -- a given model ---------------------------------------------------------------------------------------------------
def test_a_model_maps_the_scans_that_are_selected(applied):
    out, (ambiguous, participant, group) = applied
    assert ambiguous.returncode == 2
    assert 'for instance {"t1w": {"run": "01"}}' in ambiguous.stderr and "Traceback" not in ambiguous.stderr
    assert participant.returncode == 3 and group.returncode == 0, participant.stdout + group.stderr
    assert "left out of the group, not mapped by the level participant: sub-08" in group.stdout
    assert "is a link to content that is not on this machine" in participant.stderr
    assert sorted(path.name for path in out.glob("sub-*")) == ["sub-07"]
    for session in ("pre", "post"):
        place = out / "sub-07" / f"ses-{session}" / "anat"
        for space in (NATIVE, TEMPLATE):
            for end in ("desc-anomaly_zmap.nii.gz", "label-anomaly_probseg.nii.gz", "desc-clusters_dseg.tsv"):
                assert (place / f"sub-07_ses-{session}_{space}_{end}").is_file()
        assert (out / "report" / "subjects" / f"sub-07_ses-{session}.html").is_file()
    assert not (out / "work").exists(), "it is elsewhere"
    assert validate(out) == {}


def test_the_filter_file_chose_the_second_run(applied, clinic, cohort):
    out, _ = applied
    maps = OutputFolder(out.parent / "work" / "voxout")
    record = json.loads(maps.map_record(SubjectRecord("07", "patient", {}, session_id="pre")).read_text())
    assert record["about"]["t1w"] == file_fingerprint(cohort / "sub-patient001" / "anat" / "sub-patient001_T1w.nii.gz")
    assert record["about"]["group"] == "patient", "without a table, nobody is taken for healthy"


def test_a_call_that_is_refused_leaves_no_work_folder(applied, clinic, tmp_path):
    out, _ = applied
    model = out.parent / "model.voxout"
    assert "is not in the dataset" in sentence(
        clinic, tmp_path / "new" / "out", "participant", "--model", model, "--participant-label", "9"
    )
    assert list(tmp_path.iterdir()) == []


def test_masks_of_a_derivative_dataset_elsewhere_are_used(dataset, tmp_path):
    (tmp_path / "fmriprep" / "sub-patient001" / "anat").mkdir(parents=True)
    mask = tmp_path / "fmriprep" / "sub-patient001" / "anat" / "sub-patient001_desc-brain_mask.nii.gz"
    whole = read_mask(next(dataset.glob("derivatives/*/sub-patient001/anat/*desc-brain_mask.nii.gz")))
    smaller = ndimage.binary_erosion(whole.voxels)
    write_volume(mask, whole.with_voxels(smaller))
    words = ["participant", "--participant-label", "patient001", "--config-file", tmp_path / "none.yaml"]
    assert "no such configuration file" in sentence(dataset, tmp_path / "out", *words), "the same as --config"
    assert "no such folder" in sentence(dataset, tmp_path / "out", *words[:3], "-d", tmp_path / "none")
    plain, given = (
        read_bids(dataset, BidsSelection(("patient001",), derivatives=folders))
        for folders in ((), (tmp_path / "fmriprep",))
    )
    assert [record.brain_mask for record in plain] != [mask] == [record.brain_mask for record in given]
    done = bids(dataset, tmp_path / "out", *words[:3], "--derivatives", f"fmriprep={mask.parents[2]}", *AS_ARGUMENTS)
    assert done.returncode == 0, done.stderr
    (used,) = (tmp_path / "out").glob(f"sub-patient001/anat/*_{NATIVE}_desc-brain_mask.nii.gz")
    np.testing.assert_array_equal(read_mask(used).voxels, smaller)


def test_only_pages_are_written_again(applied, clinic):
    out, _ = applied
    page = out / "report" / "subjects" / "sub-07_ses-pre.html"
    maps = [path.read_bytes() for path in sorted(out.glob("sub-07/**/*zmap.nii.gz"))]
    model, work = out.parent / "model.voxout", out.parent / "work"
    words = ["--model", model, "--bids-filter-file", clinic / "filter.json", "-w", work, "--reports-only"]
    (work / "voxout" / "report" / "subjects" / page.name).unlink()
    done = bids(clinic, out, "participant", *words)
    assert done.returncode in (0, 3) and page.is_file(), done.stderr
    assert "[1/1] report" in done.stdout
    assert maps and [path.read_bytes() for path in sorted(out.glob("sub-07/**/*zmap.nii.gz"))] == maps


# -- errors ----------------------------------------------------------------------------------------------------------
def sentence(*words: object) -> str:
    done = bids(*words)
    assert done.returncode == 2 and done.stdout == "", done.stdout
    (line,) = done.stderr.splitlines()
    return line


def test_bad_calls_are_told_in_one_sentence_and_write_nothing(cohort, tmp_path):
    out, bare = tmp_path / "out", Path(shutil.copytree(cohort, tmp_path / "bare"))
    (bare / "dataset_description.json").unlink()
    assert "holds no dataset_description.json" in sentence(bare, out, "participant")
    (bare / "dataset_description.json").write_text('{"Name": "x"}')
    assert "has no BIDSVersion" in sentence(bare, out, "participant")
    (bare / "dataset_description.json").write_text("[")
    assert "is not readable as JSON" in sentence(bare, out, "participant")
    (bare / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1", "DatasetType": "derivative"}')
    assert "is a derivative dataset" in sentence(bare, out, "participant")
    assert "found no prepared scan in" in sentence(bare, out, "group", "--skip-bids-validation")
    assert "no such file or folder" in sentence(tmp_path / "none", out, "participant")
    for model, words in (("model.voxout", "no such file, expected a packed"), ("model", "expected the output folder")):
        assert words in sentence(cohort, out, "participant", "--model", tmp_path / model)
    for option in ("--model", "--bids-filter-file", "--work-dir"):
        assert sentence(cohort, out, "participant", option, "").startswith(f"voxout: {option}: found an empty path")
    assert "7 is not in the dataset" in sentence(cohort, out, "participant", "--participant-label", "7")
    assert "2 is not in the dataset" in sentence(cohort, out, "participant", "--session-label", "2")
    assert "lies inside the dataset" in sentence(cohort, cohort / "out", "participant")
    assert "lies inside the dataset" in sentence(cohort, cohort / "derivatives", "participant")
    same = sentence(cohort, tmp_path / "voxout", "participant", "-w", tmp_path)
    assert "lies in the folder of intermediate results" in same
    assert not any((folder / name).exists() for folder in (tmp_path, cohort) for name in ("out", "voxout"))


def test_folders_of_others_are_refused(cohort, tmp_path):
    (tmp_path / "dataset_description.json").write_text("{}")
    assert "holds a dataset that voxout-bids did not write" in sentence(cohort, tmp_path, "participant")
    assert [path.name for path in tmp_path.iterdir()] == ["dataset_description.json"]
    run = tmp_path / "run"
    assert voxout(["check", str(cohort), str(run), "-q", "--preset", "fast"]) == 0
    assert "is the output folder of `voxout run`" in sentence(cohort, run, "participant")


def test_a_dry_run_writes_nothing(cohort, tmp_path):
    done = bids(cohort, tmp_path / "out", "participant", "--dry-run")
    assert done.returncode == 0 and "[1/2] check: would run" in done.stdout, done.stderr
    assert not (tmp_path / "out").exists()


def test_the_command_says_what_it_is_and_starts_fast():
    code = (
        "import sys; from voxout.pipeline.cli.bids_app import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'monai', 'ants', 'numpy', 'pandas', 'dask', 'pydantic'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=os.environ)
    assert done.returncode == 0, done.stderr
    for option in (
        "--participant-label",
        "--session-label",
        "--bids-filter-file",
        "--skip-bids-validation",
        "--n-cpus",
    ):
        assert option in done.stdout
