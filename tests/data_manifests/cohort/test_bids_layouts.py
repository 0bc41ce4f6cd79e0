"""File names and tables as in public BIDS datasets; the images are empty files, since only names are read."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from voxout.data_manifests.cohort.bids import read_bids
from voxout.data_manifests.cohort.bids_filter import ScanFilter
from voxout.data_manifests.cohort.bids_selection import BidsSelection
from voxout.data_manifests.cohort.subject import Manifest
from voxout.data_manifests.errors import UserError


def dataset(folder: Path, images: Sequence[str], table: Sequence[str] = ()) -> Path:
    """Write a dataset; the cells of the table are separated by spaces."""
    for name in images:
        subject, *rest = name.split("_")
        session = [part for part in rest if part.startswith("ses-")]
        place = folder.joinpath(subject, *session, "anat")
        place.mkdir(parents=True, exist_ok=True)
        (place / name).touch()
    (folder / "dataset_description.json").write_text(json.dumps({"Name": "x", "BIDSVersion": "1.8.0"}))
    if table:
        (folder / "participants.tsv").write_text("\n".join(table).replace(" ", "\t") + "\n")
    return folder


def groups(manifest: Manifest) -> dict[str, str]:
    return {record.key: record.group for record in manifest}


@pytest.mark.parametrize("applied", [False, True])
def test_focal_cortical_dysplasia_drawn_on_the_flair_beside_healthy_controls(tmp_path, applied):
    scans = [f"sub-0000{n}_acq-{kind}.nii.gz" for n in (1, 2) for kind in ("iso08_T1w", "T2sel_FLAIR")]
    rows = ["participant_id group sex age_scan", "sub-00001 fcd M 34", "sub-00002 hc F 28"]
    folder = dataset(tmp_path, [*scans, "sub-00001_acq-T2sel_FLAIR_roi.nii.gz"], rows)
    manifest = read_bids(folder, BidsSelection(unknown_group="patient" if applied else None))
    patient, control = manifest
    assert groups(manifest) == {"sub-00001": "patient", "sub-00002": "control"}
    assert patient.lesion_mask is not None and patient.lesion_mask.name == "sub-00001_acq-T2sel_FLAIR_roi.nii.gz"
    assert patient.mask_of == "flair" and control.lesion_mask is None
    assert [note for note in manifest.notes if "counts as" in note] == [
        "participants.tsv: group hc counts as control.",
        "participants.tsv: group fcd counts as patient.",
    ]


def test_sessions_named_by_days_with_two_runs(tmp_path):
    days = [f"sub-OAS30001_ses-d{day}_run-0{run}_T1w.nii.gz" for day in ("0129", "0757") for run in (1, 2)]
    folder = dataset(
        tmp_path, [*days, "sub-OAS30002_ses-d0371_T1w.nii.gz", "sub-OAS30002_ses-d0371_acq-TSE_T2w.nii.gz"]
    )
    with pytest.raises(UserError, match="found 2 T1w"):
        read_bids(folder, BidsSelection(one_scan_of=("t1w",)))
    first = BidsSelection(one_scan_of=("t1w",), filters={"t1w": ScanFilter({"run": (1, None)})})
    chosen = {record.key: record.images["t1w"].name for record in read_bids(folder, first)}
    assert chosen == {
        "sub-OAS30001_ses-d0129": days[0],
        "sub-OAS30001_ses-d0757": days[2],
        "sub-OAS30002_ses-d0371": "sub-OAS30002_ses-d0371_T1w.nii.gz",
    }


def test_long_ids_with_the_diagnosis_in_a_column_of_its_own(tmp_path):
    images = [f"sub-ADNI002S0295_ses-M0{month}_T1w.nii.gz" for month in ("00", "12")]
    rows = ["participant_id sex diagnosis_sc", "sub-ADNI002S0295 M CN", "sub-ADNI002S0413 F AD"]
    folder = dataset(tmp_path, [*images, "sub-ADNI002S0413_ses-M000_T1w.nii.gz"], rows)
    with pytest.raises(UserError, match="column diagnosis_sc may contain the group"):
        read_bids(folder)
    assert set(groups(read_bids(folder, BidsSelection(unknown_group="patient"))).values()) == {"patient"}


@pytest.mark.parametrize("space", ["MNI152NLin2009aSym", "orig"])
def test_stroke_with_scan_and_mask_in_one_space(tmp_path, space):
    name = f"sub-r001s001_ses-1_space-{space}"
    mask = f"{name}_label-L_desc-T1lesion_mask.nii.gz"
    elsewhere = "sub-r001s001_ses-1_space-other_label-L_desc-T1lesion_mask.nii.gz"
    (record,) = manifest = read_bids(dataset(tmp_path, [f"{name}_T1w.nii.gz", mask, elsewhere]))
    assert record.group == "patient" and record.lesion_mask is not None and record.lesion_mask.name == mask
    assert record.mask_of == "t1w"
    assert any("not in the space of a scan" in note and elsewhere in note for note in manifest.notes)


def test_numbers_for_sex_and_group_and_ids_with_zeros(tmp_path):
    rows = ["participant_id SITE_ID DX_GROUP AGE_AT_SCAN SEX", "50002 PITT 1 16.77 1", "50003 PITT 2 24.45 2"]
    folder = dataset(tmp_path, ["sub-0050002_T1w.nii.gz", "sub-0050003_T1w.nii.gz"], rows)
    with pytest.raises(UserError) as refused:
        read_bids(folder)
    assert [words in str(refused.value) for words in ("likely row sub-50002", "column dx_group may contain")] == [
        True
    ] * 2
    manifest = read_bids(folder, BidsSelection(unknown_group="patient"))
    assert groups(manifest) == {"sub-0050002": "patient", "sub-0050003": "patient"}
    assert [note for note in manifest.notes if "sex 1" in note] == [
        "participants.tsv: sex 1 is not known, expected F (female), M (male) or O (other); left empty."
    ]


def test_a_disease_in_the_group_beside_controls(tmp_path):
    images = [f"sub-{n}_T1w.nii.gz" for n in ("01", "51", "52")]
    rows = ["participant_id age gender group", "sub-01 33.0 f depr", "sub-51 22 m control", "sub-52 24 f Control"]
    assert groups(read_bids(dataset(tmp_path, images, rows))) == {
        "sub-01": "patient",
        "sub-51": "control",
        "sub-52": "control",
    }


@pytest.mark.parametrize("words", [("depr", "n/a"), ("1", "control"), ("contrl", "control"), ("depr", "bipolar")])
def test_words_that_do_not_tell_the_group_are_refused_where_a_model_is_fitted(tmp_path, words):
    rows = ["participant_id group", *(f"sub-{n} {word}" for n, word in enumerate(words))]
    folder = dataset(tmp_path, ["sub-0_T1w.nii.gz", "sub-1_T1w.nii.gz"], rows)
    with pytest.raises(UserError, match=f"group {words[0]} is unknown"):
        read_bids(folder)
    assert groups(read_bids(folder, BidsSelection(unknown_group="patient")))["sub-0"] == "patient"


def test_links_into_an_annex_that_were_not_fetched(tmp_path):
    folder = dataset(tmp_path, ["sub-01_T1w.nii.gz"])
    scan = folder / "sub-01" / "anat" / "sub-01_T1w.nii.gz"
    scan.unlink()
    scan.symlink_to("../../.git/annex/objects/pq/k3/MD5E-s9--0.nii.gz/MD5E-s9--0.nii.gz")
    assert groups(read_bids(folder)) == {"sub-01": "control"}, "it fails when it is read, by its own sentence"
