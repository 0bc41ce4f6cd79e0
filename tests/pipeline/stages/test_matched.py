"""`voxout apply --matched-controls`: a model for each subject, and what is told of its controls."""

import csv
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from voxout.data_manifests.cohort.manifest import read_manifest
from voxout.data_manifests.cohort.output_paths import OutputFolder, beside
from voxout.data_manifests.images.volume import read_map
from voxout.data_manifests.synthetic.phantoms import small_cohort
from voxout.models.anomaly.matching import Matching, match
from voxout.pipeline.workflow.records import StageRecord

from ..commands import told
from ..small_run import ALL_CONTROLS_FIT, SETTINGS, as_arguments

CONTROLS = 12
PATIENT = "sub-patient001"
pytestmark = pytest.mark.usefixtures("warm_workers")


def with_columns(table: Path, name: str, **columns) -> Path:
    """Write a copy of a table with other values in some columns, computed from the number of the row."""
    rows = list(csv.DictReader(table.open()))
    for number, row in enumerate(rows):
        row.update({column: str(value(number)) for column, value in columns.items()})
    path = table.parent / f"{name}.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


@dataclass(frozen=True)
class Lab:
    cohort: Path
    model: Path
    plain: OutputFolder
    matched: OutputFolder
    said: str

    def apply(self, out: Path, controls: Path, *more: object, cohort: Path | None = None) -> tuple[int, str]:
        words = ["apply", self.model, cohort or self.cohort, out, "--matched-controls", controls]
        return told(*words, "--device", "cpu", *more)


@pytest.fixture(scope="module")
def lab(warm_workers, tmp_path_factory) -> Lab:
    folder = tmp_path_factory.mktemp("lab")
    table = small_cohort(folder / "cohort", controls=CONTROLS, patients=1, seed=5)
    cohort = with_columns(table, "known", age=lambda number: 30 + 4 * number, sex=lambda number: "FM"[number % 2])
    lab = Lab(cohort, folder / "model", OutputFolder(folder / "plain"), OutputFolder(folder / "matched"), "")
    more = [*as_arguments(SETTINGS), *as_arguments(ALL_CONTROLS_FIT), "--device", "cpu"]
    code, said = told("run", cohort, lab.model, *more)
    assert code == 0, said
    assert told("apply", lab.model, cohort, lab.plain.root, "--device", "cpu")[0] == 0
    code, said = lab.apply(lab.matched.root, cohort)
    assert code == 0, said
    return Lab(cohort, lab.model, lab.plain, lab.matched, said)


def z_of(lab: Lab, out: OutputFolder) -> np.ndarray:
    return read_map(out.native_map(read_manifest(lab.cohort)[PATIENT])).voxels


def expected(lab: Lab):
    manifest = read_manifest(lab.cohort)
    return match(manifest.controls, manifest[PATIENT], Matching())


def test_the_map_is_another_and_all_is_told(lab):
    found, patient = expected(lab), read_manifest(lab.cohort)[PATIENT]
    assert 10 <= found.effective < CONTROLS and np.abs(z_of(lab, lab.matched) - z_of(lab, lab.plain)).max() > 0.1
    told_of_it = {
        "Controls": CONTROLS,
        "EffectiveNumber": round(found.effective, 1),
        "AgeSdYears": round(found.years or 0, 1),
        "Warnings": list(found.warnings),
    }
    for path in (lab.matched.native_map(patient), lab.matched.cluster_labels(patient, "native")):
        assert json.loads(beside(path, ".json").read_text())["MatchedControls"] == told_of_it
    assert "MatchedControls" not in json.loads(beside(lab.plain.native_map(patient), ".json").read_text())
    assert f"matched controls: {CONTROLS} count as {found.effective:.1f} equal ones" in lab.said
    assert f"warning: {PATIENT}: older than all controls, so that what is normal" in lab.said
    page = lab.matched.subject_page(patient).read_text()
    assert f"{CONTROLS} controls count as {found.effective:.1f} equal ones. Warning: older than all controls" in page
    assert 'id="matched"' not in lab.plain.subject_page(patient).read_text()


def test_describe_tells_of_them_in_the_folder_and_of_a_copy(lab, tmp_path):
    path = lab.matched.native_map(read_manifest(lab.cohort)[PATIENT])
    assert "the matched controls" in told("describe", path)[1]
    for file in (path, beside(path, ".json")):
        shutil.copy(file, tmp_path)
    assert "the model was fitted for this subject: 12 controls count as" in told("describe", tmp_path / path.name)[1]


def test_a_second_call_does_nothing_and_other_ages_map_again(lab, tmp_path):
    out = OutputFolder(tmp_path / "out")
    shutil.copytree(lab.matched.root, out.root)
    said = lab.apply(out.root, lab.cohort)[1]
    assert "map: up to date, skipped" in said
    other = with_columns(lab.cohort, "other", age=lambda number: 80 - 4 * number)
    assert "map: up to date" not in lab.apply(out.root, other)[1]
    assert np.abs(z_of(lab, out) - z_of(lab, lab.matched)).max() > 0.05
    assert "map: up to date" not in told("apply", lab.model, lab.cohort, out.root, "--device", "cpu")[1]
    np.testing.assert_array_equal(z_of(lab, out), z_of(lab, lab.plain))


def test_the_folds_are_those_of_the_fit_whatever_the_seed_of_the_call(lab, tmp_path):
    out = OutputFolder(tmp_path / "out")
    assert lab.apply(out.root, lab.cohort, "--seed", "7")[0] == 0
    np.testing.assert_array_equal(z_of(lab, out), z_of(lab, lab.matched))


def test_controls_of_one_age_and_sex_give_the_map_of_the_model(lab, tmp_path):
    alike = with_columns(lab.cohort, "alike", age=lambda number: 50, sex=lambda number: "F")
    out = OutputFolder(tmp_path / "out")
    code, said = lab.apply(out.root, alike, cohort=alike)
    assert code == 0 and f"{CONTROLS} count as {CONTROLS}.0 equal ones" in said
    np.testing.assert_array_equal(z_of(lab, out), z_of(lab, lab.plain))
    record = StageRecord.read(out.map_record(read_manifest(lab.cohort)[PATIENT]))
    assert record is not None and not record.warnings


def test_what_cannot_be_matched_is_one_sentence(lab, tmp_path):
    def refused(controls: Path, *more: object) -> str:
        code, said = lab.apply(tmp_path / "out", controls, *more)
        assert code == 2 and not (tmp_path / "out").exists(), "before anything is done"
        return said

    half = with_columns(lab.cohort, "half", age=lambda number: number or "")
    assert "1 of 12 training controls have no age (sub-control001)" in refused(half)
    rows = lab.cohort.read_text().splitlines(keepends=True)
    few = lab.cohort.with_name("few.csv")
    few.write_text("".join([*rows[:3], rows[-1]]))
    assert "10 of 12 training controls of the model are not in the given cohort" in refused(few)
    assert "found a standard deviation of 0 years" in refused(lab.cohort, "--age-sd", "0")
    packed = tmp_path / "model.voxout"
    assert told("model", "pack", lab.model, packed)[0] == 0
    words = ["apply", packed, lab.cohort, tmp_path / "packed", "--matched-controls", lab.cohort, "--device", "cpu"]
    code, said = told(*words)
    assert code == 2 and "holds no cross-validated scores of the training controls" in said
    code, said = told("apply", lab.model, lab.cohort, tmp_path / "out", "--age-sd", "5")
    assert code == 2 and "--age-sd: found no --matched-controls" in said
