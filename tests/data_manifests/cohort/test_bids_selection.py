"""Selection in BIDS datasets: participants, sessions, filter files, several scans of a session, unusual layouts."""

import json
from pathlib import Path

import pytest
from voxout.data_manifests.cohort.bids import read_bids
from voxout.data_manifests.cohort.bids_filter import read_filters
from voxout.data_manifests.cohort.bids_selection import BidsSelection
from voxout.data_manifests.cohort.check import check_manifest
from voxout.data_manifests.errors import UserError, for_terminal

STRICT = {"one_scan_of": ("t1w", "flair"), "unknown_group": "patient"}


@pytest.fixture
def dataset(tmp_path):
    def make(*names: str) -> Path:
        for name in names:
            parts = dict(part.split("-", 1) for part in name.split("_")[:-1])
            folders = [f"{entity}-{parts[entity]}" for entity in ("sub", "ses") if entity in parts]
            path = tmp_path.joinpath("bids", *folders, "anat", name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        return tmp_path / "bids"

    return make


@pytest.fixture
def filters(tmp_path):
    def read(content: object):
        path = tmp_path / "filter.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return read_filters(path)

    return read


def chosen(root: Path, **selection) -> dict[str, tuple[str, ...]]:
    manifest = read_bids(root, BidsSelection(**{**STRICT, **selection}))
    return {record.key: tuple(path.name for path in record.images.values()) for record in manifest}


def problem(root: Path, **selection) -> str:
    with pytest.raises(UserError) as caught:
        chosen(root, **selection)
    (sentence,) = caught.value.problems
    return for_terminal(sentence)


# -- participants and sessions ---------------------------------------------------------------------------------------
def test_participants_and_sessions_are_selected_and_images_paired_by_session(dataset):
    root = dataset(
        *("sub-01_ses-1_T1w.nii.gz", "sub-01_ses-1_FLAIR.nii.gz", "sub-01_ses-2_T1w.nii.gz", "sub-01_ses-2_FLAIR.nii"),
        *("sub-02_ses-2_T1w.nii.gz", "sub-02_ses-3_FLAIR.nii.gz"),
    )
    second = ("sub-01_ses-2_T1w.nii.gz", "sub-01_ses-2_FLAIR.nii")
    assert list(chosen(root)) == ["sub-01_ses-1", "sub-01_ses-2", "sub-02_ses-2"]
    assert chosen(root, sessions=("2",)) == {"sub-01_ses-2": second, "sub-02_ses-2": ("sub-02_ses-2_T1w.nii.gz",)}
    assert chosen(root, sessions=("2",), participants=("01",)) == {"sub-01_ses-2": second}
    assert chosen(root, participants=("02",)) == {"sub-02_ses-2": ("sub-02_ses-2_T1w.nii.gz",)}


def test_labels_that_the_dataset_lacks(dataset):
    root = dataset("sub-001_ses-1_T1w.nii.gz", "sub-002_T1w.nii.gz", "sub-003_T2w.nii.gz")
    assert problem(root, participants=("1",)) == (
        "--participant-label: 1 is not in the dataset, expected one of its 3 participants, such as 001. Check the "
        "label."
    )
    assert problem(root, sessions=("02",)) == (
        "--session-label: 02 is not in the dataset, expected one of 1. Check the label."
    )
    for found in (problem(root, participants=("003",)), problem(root, participants=("001", "003"))):
        assert found == (
            "sub-003: found no T1w, expected sub-003/[ses-*/]anat/*_T1w.nii.gz. Check the dataset, or leave this "
            "participant out."
        )
    assert "sub-002: found no T1w in session 1" in problem(root, participants=("002",), sessions=("1",))
    (root / "sub-001" / "ses-1").rename(root / "elsewhere")
    assert "expected none, since it has no folders ses-*" in problem(root, sessions=("1",))
    assert read_bids(root, BidsSelection(**STRICT)).notes[-1].startswith("left out, no T1w: sub-001, sub-003")


# -- several scans of a session --------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("names", "example", "first"),
    [
        (("run-1_T1w.nii.gz", "run-2_T1w.nii.gz"), {"run": "1"}, "run-1_T1w.nii.gz"),
        (("run-01_T1w.nii.gz", "run-1_T1w.nii.gz"), {"run": "01"}, "run-01_T1w.nii.gz"),
        (("acq-defaced_T1w.nii.gz", "T1w.nii.gz"), {"acquisition": None}, "T1w.nii.gz"),
        (("rec-norm_T1w.nii.gz", "acq-b_run-2_T1w.nii.gz", "acq-a_run-2_T1w.nii.gz"), None, "rec-norm_T1w.nii.gz"),
        (("T1w.nii", "T1w.nii.gz"), {"extension": ".nii"}, "T1w.nii"),
        (("ce-gd_run-1_T1w.nii.gz", "ce-gd_run-2_T1w.nii.gz"), {"run": "1"}, "ce-gd_run-1_T1w.nii.gz"),
    ],
)
def test_ambiguous_scans_are_refused_with_a_filter_that_chooses_one(dataset, filters, names, example, first):
    root = dataset(*(f"sub-01_{name}" for name in names))
    sentence = problem(root)
    assert sentence.startswith(f"sub-01: found {len(names)} T1w (sub-01_") and "expected one. Choose with" in sentence
    offered = json.loads(sentence.partition("for instance ")[2].rpartition(" for ")[0])
    assert example is None or offered == {"t1w": example}
    assert chosen(root, filters=filters(offered)) == {"sub-01": (f"sub-01_{first}",)}
    assert len(chosen(root, one_scan_of=())) == 1, "the first by rank, as `voxout run`"


def test_a_scan_without_contrast_agent_is_no_ambiguity(dataset):
    root = dataset("sub-01_ce-gadolinium_T1w.nii.gz", "sub-01_run-01_T1w.nii.gz")
    assert chosen(root) == {"sub-01": ("sub-01_run-01_T1w.nii.gz",)}


def test_an_ambiguous_flair_is_refused_only_where_it_is_used(dataset):
    root = dataset(*(f"sub-0{n}_{name}.nii.gz" for n in (1, 2) for name in ("T1w", "run-1_FLAIR", "run-2_FLAIR")))
    found = problem(root)
    assert found.startswith("sub-01: found 2 FLAIR (") and "(and so for 1 other session)" in found
    assert chosen(root, one_scan_of=("t1w",))["sub-01"] == ("sub-01_T1w.nii.gz", "sub-01_run-1_FLAIR.nii.gz")


def test_names_that_no_filter_tells_apart(dataset):
    root = dataset("sub-01_T1w.nii.gz")
    (root / "sub-01" / "anat" / "sub-01_rms_T1w.nii.gz").touch()
    assert problem(root).endswith("expected one. Take the others out of the folder.")


# -- filter files ----------------------------------------------------------------------------------------------------
def test_filters_choose_by_entity_number_absence_and_list(dataset, filters):
    root = dataset(
        *("sub-01_run-01_T1w.nii.gz", "sub-01_run-02_T1w.nii.gz", "sub-02_T1w.nii.gz", "sub-02_acq-fast_T1w.nii.gz"),
        *("sub-01_FLAIR.nii.gz", "sub-01_acq-3d_FLAIR.nii.gz"),
    )
    rules = {
        "t1w": {"datatype": "anat", "suffix": "T1w", "run": [1, None], "acq": "Query.NONE", "extension": "nii.gz"},
        "flair": {"acquisition": "*"},
        "bold": {"task": "rest"},  # for another program
    }
    assert chosen(root, filters=filters(rules)) == {
        "sub-01": ("sub-01_run-01_T1w.nii.gz", "sub-01_acq-3d_FLAIR.nii.gz"),
        "sub-02": ("sub-02_T1w.nii.gz",),
    }
    assert "sub-01: found no T1w that the filter file accepts" in problem(
        root, filters=filters({"t1w": {"run": "1"}}), participants=("01",), one_scan_of=()
    ), "a text is compared as it is"
    none = filters({"t1w": {"session": "2"}})
    assert problem(root, filters=none, one_scan_of=()).endswith("Check what was selected.")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is no JSON, expected an object of filters"),
        ('["t1w"]', "is no object of objects"),
        ({"t1w": "mprage"}, "is no object of objects"),
        ({"T1w": {}}, "found the image T1w, expected t1w or flair"),
        ({"t1w": {"acquistion": "x"}}, "t1w.acquistion is not known, expected acquisition"),
        ({"t1w": {"subject": "01"}}, "Participants are chosen with --participant-label"),
        ({"t1w": {"run": 1.5}}, "t1w.run has a value that is no text, number or null"),
        ({"t1w": {"run": []}}, "t1w.run has a value that is no text, number or null"),
        ({"t1w": {"suffix": "MP2RAGE"}}, 't1w.suffix excludes all scans that are read, expected "T1w"'),
    ],
)
def test_filter_files_that_cannot_be_used(filters, content, words):
    with pytest.raises(UserError) as caught:
        filters(content)
    assert words in for_terminal(str(caught.value))
    assert str(caught.value).startswith("--bids-filter-file: ")


def test_a_filter_file_that_is_missing(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        read_filters(tmp_path / "none.json")


# -- layouts of public datasets --------------------------------------------------------------------------------------
def test_sessions_without_a_table_and_a_phantom_and_links_that_dangle(dataset):
    """Each T1w that cannot be used fails for itself; what is a phantom is seen only when it is prepared."""
    root = dataset("sub-01_ses-pre_T1w.nii.gz", "sub-phantom_T1w.nii.gz")
    for name in ("sub-02_T1w.nii.gz", "sub-02_FLAIR.nii.gz"):
        place = root / "sub-02" / "anat"
        place.mkdir(parents=True, exist_ok=True)
        (place / name).symlink_to("../../.git/annex/objects/aa/bb/MD5E-s1--0.nii.gz/MD5E-s1--0.nii.gz")
    (root / "sub-03").symlink_to(root / "not-fetched")
    manifest = read_bids(root, BidsSelection(**STRICT))
    assert [record.key for record in manifest] == ["sub-01_ses-pre", "sub-02", "sub-03", "sub-phantom"]
    assert manifest.notes[0] == "participants.tsv is missing: ages, sexes and sites are unknown."
    assert any(note.startswith("cannot be reached: sub-03 (a broken link)") for note in manifest.notes)
    problems = check_manifest(manifest, modalities=("t1w",), fewest_controls=0).problems
    reasons = {found.subject_key: for_terminal(found.sentence) for found in problems}
    for key in ("sub-02", "sub-03"):
        assert "is a link to content that is not on this machine" in reasons[key]
        assert "datalad get" in reasons[key]
    both = read_bids(root, BidsSelection(**STRICT, participants=("01", "03")))
    assert [record.key for record in both] == ["sub-01_ses-pre", "sub-03"]


def test_unknown_groups_are_patients_only_where_no_model_is_fitted(dataset):
    root = dataset("sub-01_T1w.nii.gz", "sub-02_T1w.nii.gz")
    (root / "participants.tsv").write_text("participant_id\tdiagnosis\tgroup_\nsub-01\tMS\tx\nsub-02\tnone\tx\n")
    assert {r.group for r in read_bids(root, BidsSelection(unknown_group="patient"))} == {"patient"}
    with pytest.raises(UserError, match="may contain the group"):
        read_bids(root)
    (root / "participants.tsv").write_text("participant_id\tgroup\nsub-01\tcontrol\nsub-02\tn/a\n")
    assert [r.group for r in read_bids(root, BidsSelection(unknown_group="patient"))] == ["control", "patient"]
