"""Derivatives follow the results of a run: they are written anew, kept, set aside or removed."""

from pathlib import Path

import pytest
from voxout.data_manifests.cohort.bids import read_bids
from voxout.data_manifests.cohort.output_paths import OutputFolder
from voxout.data_manifests.cohort.subject import Manifest, SubjectRecord
from voxout.data_manifests.errors import Failure
from voxout.pipeline.bids.dataset import describe_dataset
from voxout.pipeline.bids.derivatives import write_derivatives
from voxout.pipeline.workflow.ownership import claim
from voxout.pipeline.workflow.records import StageRecord

ONE, OTHER = (SubjectRecord(name, "patient", {}, session_id="1") for name in ("01", "02"))


class Results:
    """A run with prepared subjects (no file is an image) and its derivatives."""

    def __init__(self, root: Path):
        self.run, self.out = OutputFolder(root / "work" / "voxout"), root / "out"

    def prepare(self, subject: SubjectRecord, content: str) -> None:
        run = self.run
        files = [run.prepared_image(subject, "t1w"), run.prepared_brain_mask(subject), run.native_brain_mask(subject)]
        for path in (*files, run.quality_picture(subject)):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        StageRecord("prepare", {"content": content}, {}).write(run.subject_record(subject))

    def write(self, *subjects: SubjectRecord) -> None:
        claim(self.out)
        describe_dataset(self.out, self.run.root)
        write_derivatives(self.out, self.run, Manifest(subjects))

    def brain(self, subject: SubjectRecord) -> Path:
        return self.out / f"sub-{subject.subject_id}" / "ses-1" / "anat" / self.run.native_brain_mask(subject).name


@pytest.fixture
def results(tmp_path) -> Results:
    made = Results(tmp_path)
    made.prepare(ONE, "first")
    made.prepare(OTHER, "first")
    made.write(ONE, OTHER)
    return made


def test_only_changed_results_are_written_again(results):
    before = results.brain(ONE).stat().st_mtime_ns, results.brain(OTHER).stat().st_mtime_ns
    results.prepare(ONE, "second")
    results.write(ONE, OTHER)
    assert results.brain(ONE).read_text() == "second"
    assert results.brain(OTHER).stat().st_mtime_ns == before[1] and results.brain(ONE).stat().st_mtime_ns != before[0]
    assert not (results.out / ".building").exists() and not (results.out / "set-aside").exists()


def test_a_file_of_the_user_is_set_aside(results):
    results.brain(ONE).write_text("mine")
    results.prepare(ONE, "second")
    results.write(ONE)
    assert results.brain(ONE).read_text() == "second"
    assert (results.out / "set-aside" / results.brain(ONE).relative_to(results.out)).read_text() == "mine"


def test_subjects_of_other_calls_stay_also_without_their_work_folder(results):
    results.run = OutputFolder(results.out.parent / "another")
    results.write(ONE, OTHER)
    assert results.brain(ONE).read_text() == results.brain(OTHER).read_text() == "first"


def test_derivatives_of_a_scan_are_removed_if_a_new_one_failed(results):
    failure = Failure(ONE.key, "prepare", "failed")
    StageRecord("prepare", {"content": "new"}, {}, failed=(failure,)).write(results.run.subject_record(ONE))
    results.write(ONE, OTHER)
    assert not (results.out / "sub-01").exists() and results.brain(OTHER).is_file()


@pytest.mark.parametrize("kept", ["dataset_description.json", "records"])
def test_derivatives_within_the_dataset_are_not_read_as_its_masks(tmp_path, kept):
    """Their brain masks would otherwise be taken for given ones at the next call."""
    scan = tmp_path / "bids" / "sub-01" / "ses-1" / "anat" / "sub-01_ses-1_T1w.nii.gz"
    scan.parent.mkdir(parents=True)
    scan.touch()
    made = Results(tmp_path)
    made.out = tmp_path / "bids" / "derivatives" / "voxout"
    made.prepare(ONE, "first")
    made.write(ONE)
    for other in {"dataset_description.json", "records"} - {kept}:
        (made.out / other).rename(tmp_path / other)
    assert read_bids(tmp_path / "bids")[ONE.key].brain_mask is None
    (made.out / kept).rename(tmp_path / "moved")
    assert read_bids(tmp_path / "bids")[ONE.key].brain_mask == made.brain(ONE)


def test_a_work_folder_within_is_ignored_by_validators(tmp_path):
    claim(tmp_path / "out")
    describe_dataset(tmp_path / "out", tmp_path / "out" / "tmp" / "voxout")
    assert (tmp_path / "out" / ".bidsignore").read_text().splitlines()[-1] == "tmp"
    describe_dataset(tmp_path / "out", tmp_path / "elsewhere")
    assert (tmp_path / "out" / ".bidsignore").read_text().splitlines()[-1] == "set-aside"
