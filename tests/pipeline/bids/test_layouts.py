"""Scans named as in public BIDS datasets are mapped; the derivatives are valid, and nothing of a dataset is changed."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from voxout.data_manifests.images.volume import read_volume, write_volume
from voxout.data_manifests.synthetic.phantoms import small_cohort
from voxout.pipeline.cli.main import main as voxout

from ..small_run import ALL_CONTROLS_FIT, SETTINGS, as_arguments
from .calls import bids, state_of, validate

ANNEX = Path("../../.git/annex/objects/pq/k3")


@dataclass(frozen=True)
class Layout:
    """A dataset, and what becomes of it.

    Attributes
    ----------
    scans : sequence of str
        Names of T1w, FLAIR and lesion masks; all hold real images.
    mapped : sequence of str
        Keys of the scans that have a map in the end.
    table : sequence of str
        Lines of participants.tsv; the cells are separated by spaces.
    files : mapping from path to text
        Further files.
    filters : mapping
        Content of a filter file.
    annexed, missing : sequence of str
        Those of `scans` that are links into an annex, with content, and those without.
    """

    scans: Sequence[str]
    mapped: Sequence[str]
    table: Sequence[str] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    filters: Mapping[str, object] = field(default_factory=dict)
    annexed: Sequence[str] = ()
    missing: Sequence[str] = ()


LAYOUTS = {
    "focal cortical dysplasia: acq-, FLAIR and its mask": Layout(
        ["sub-00001_acq-iso08_T1w.nii.gz", "sub-00001_acq-T2sel_FLAIR.nii.gz", "sub-00001_acq-T2sel_FLAIR_roi.nii.gz"],
        ["sub-00001"],
        ["participant_id group sex age_scan", "sub-00001 fcd M 34", "sub-00002 hc F 28"],
    ),
    "ageing: sessions named by days, two runs, scans.tsv": Layout(
        [
            "sub-OAS30001_ses-d0129_run-01_T1w.nii.gz",
            "sub-OAS30001_ses-d0129_run-02_T1w.nii.gz",
            "sub-OAS30001_ses-d0757_T1w.nii.gz",
        ],
        ["sub-OAS30001_ses-d0129", "sub-OAS30001_ses-d0757"],
        files={
            "sub-OAS30001/ses-d0757/sub-OAS30001_ses-d0757_scans.tsv": "filename\tacq_time\n"
            "anat/sub-OAS30001_ses-d0757_T1w.nii.gz\tn/a\n"
        },
        filters={"t1w": {"run": ["02", None]}},
    ),
    "dementia: long ids, sessions, n/a, phenotype": Layout(
        ["sub-ADNI002S0295_ses-M000_T1w.nii.gz", "sub-ADNI002S0295_ses-M012_T1w.nii.gz"],
        ["sub-ADNI002S0295_ses-M000", "sub-ADNI002S0295_ses-M012"],
        ["participant_id sex age diagnosis_sc", "sub-ADNI002S0295 n/a n/a CN"],
        {"phenotype/adas.tsv": "participant_id\tadas\nsub-ADNI002S0295\tn/a\n"},
    ),
    "stroke: scan and mask in one space": Layout(
        ["sub-r001s001_ses-1_space-orig_T1w.nii.gz", "sub-r001s001_ses-1_space-orig_label-L_desc-T1lesion_mask.nii.gz"],
        ["sub-r001s001_ses-1"],
    ),
    "autism: ids with zeros, numbers for groups, uncompressed": Layout(
        ["sub-0050002_T1w.nii"],
        ["sub-0050002"],
        ["participant_id DX_GROUP AGE_AT_SCAN SEX", "50002 1 16.77 1"],
    ),
    "depression: annex, contrast agent, rec-, sourcedata, derivatives": Layout(
        [
            "sub-01_rec-norm_T1w.nii.gz",
            "sub-02_T1w.nii.gz",
            "sub-02_ce-gadolinium_T1w.nii.gz",
            "sub-51_T1w.nii.gz",
        ],
        ["sub-01", "sub-02"],
        ["participant_id age gender group", "sub-01 33.0 f depr", "sub-02 n/a n/a depr", "sub-51 22 m control"],
        {
            "sourcedata/sub-01/scan_T1w.nii.gz": "no image",
            "derivatives/fmriprep/dataset_description.json": '{"Name": "f", "BIDSVersion": "1.8.0", '
            '"DatasetType": "derivative", "GeneratedBy": [{"Name": "fMRIPrep"}]}',
        },
        annexed=["sub-01_rec-norm_T1w.nii.gz"],
        missing=["sub-51_T1w.nii.gz"],
    ),
}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Path:
    """Four controls and a patient."""
    return small_cohort(tmp_path_factory.mktemp("cohort") / "bids", controls=4, patients=1, seed=5).parent


@pytest.fixture(scope="module")
def model(cohort, warm_workers, tmp_path_factory) -> Path:
    """The folder of a run."""
    out = tmp_path_factory.mktemp("model") / "out"
    options = ["--preset", "fast", "--device", "cpu", "-q", *as_arguments(SETTINGS | ALL_CONTROLS_FIT)]
    assert voxout(["run", str(cohort / "cohort.csv"), str(out), *options]) == 0
    return out


def written(layout: Layout, folder: Path, cohort: Path) -> Path:
    """Write a dataset, read-only but for root."""
    scan = cohort / "sub-patient001" / "anat" / "sub-patient001_T1w.nii.gz"
    (lesion,) = cohort.glob("derivatives/reference/sub-patient001/anat/*lesion*mask.nii.gz")
    for name in layout.scans:
        subject, *rest = name.split("_")
        path = folder.joinpath(subject, *[part for part in rest if part.startswith("ses-")], "anat", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        content = lesion if name.endswith(("_mask.nii.gz", "_roi.nii.gz")) else scan
        if name in (*layout.annexed, *layout.missing):
            path.symlink_to(ANNEX / name)
            path = path.parent / ANNEX / name
        if name in layout.missing:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".nii":
            write_volume(path, read_volume(content))
        else:
            shutil.copyfile(content, path)
    about = json.dumps({"Name": "x", "BIDSVersion": "1.8.0"})
    table = {"participants.tsv": "\n".join(layout.table).replace(" ", "\t") + "\n"} if layout.table else {}
    for name, text in {"dataset_description.json": about, **table, **layout.files}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o555 if path.is_dir() else 0o444)
    return folder


@pytest.mark.parametrize("kind", LAYOUTS)
def test_scans_of_public_datasets_are_mapped_with_valid_derivatives(tmp_path, cohort, model, kind):
    layout, out = LAYOUTS[kind], tmp_path / "out"
    dataset = written(layout, tmp_path / "bids", cohort)
    filters = tmp_path / "filter.json"
    filters.write_text(json.dumps(layout.filters))
    before = state_of(dataset)
    done = bids(dataset, out, "participant", "--model", model, "--bids-filter-file", filters)
    assert done.returncode == (3 if layout.missing else 0), done.stdout + done.stderr
    assert state_of(dataset) == before
    maps = {path.name.split("_space-")[0] for path in out.glob("sub-*/**/*_space-orig_desc-anomaly_zmap.nii.gz")}
    assert maps == set(layout.mapped)
    assert validate(out) == {}
