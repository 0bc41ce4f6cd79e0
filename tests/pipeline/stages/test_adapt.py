"""Adaptation of a model to another scanner: the adapted model, and what is refused."""

import json
from dataclasses import replace

import numpy as np
import pytest
from voxout.data_manifests.cohort.output_paths import OutputFolder, beside
from voxout.data_manifests.cohort.subject import Manifest, SubjectRecord
from voxout.data_manifests.errors import UserError
from voxout.data_manifests.images.volume import Volume, write_volume
from voxout.data_manifests.open_file import file_hash
from voxout.evaluation.scoring.operating_point import StoredPoint
from voxout.pipeline.model.anomaly_model import AnomalyModel
from voxout.pipeline.model.map_files import MapContext, write_map
from voxout.pipeline.model.model_files import adapted_on, number_of_controls, read_trained_on, write_model_record
from voxout.pipeline.model.pack import pack
from voxout.pipeline.model.unpack import read_card, unpack
from voxout.pipeline.model.whole_model import require_whole_model
from voxout.pipeline.stages.adapt import require_can_adapt
from voxout.pipeline.stages.order import adapting_stages
from voxout.pipeline.stages.report_pages import run_summary
from voxout.pipeline.workflow.console import Console
from voxout.pipeline.workflow.engine import Engine
from voxout.pipeline.workflow.records import StageRecord, file_fingerprint, write_json
from voxout.pipeline.workflow.runner import Run, run_stages
from voxout.pipeline.workflow.stage_inputs import fit_identity

from ..model.small_model import CONTROLS, GRID, MASK, brains, fit_small_model

LOCAL = 8
BRIGHTER = 0.12 * (np.arange(12)[:, None, None] / 11) * MASK
"""Shading of the other scanner."""


def head(index: int, seed: int) -> np.ndarray:
    return (brains(index + 1, seed)[index, 0].astype(np.float32) + BRIGHTER).clip(0, 1)


class Site:
    """A site with another scanner: prepared scans of controls, and an output folder."""

    def __init__(self, root, model):
        self.root, self.model, self.out = root, OutputFolder(model), OutputFolder(root / "adapted")
        self.subjects: list[SubjectRecord] = []

    def add(self, count: int) -> "Site":
        for index in range(count):
            scan = self.root / f"scan{index}.nii.gz"
            image = Volume(head(index, 7), GRID.grid)
            write_volume(scan, image)
            subject = SubjectRecord(f"local{index}", "control", {"t1w": scan}, age=30.0 + index)
            for path, volume in (
                (self.out.prepared_image(subject, "t1w"), image),
                (self.out.prepared_brain_mask(subject), Volume(MASK, GRID.grid)),
            ):
                path.parent.mkdir(parents=True, exist_ok=True)
                write_volume(path, volume)
            StageRecord("prepare", {"t1w": file_fingerprint(scan)}, {}).write(self.out.subject_record(subject))
            self.subjects.append(subject)
        self.prepared(self.subjects)
        return self

    def prepared(self, subjects) -> None:
        StageRecord("prepare", {}, {}, tuple(s.key for s in subjects)).write(self.out.record("prepare"))

    def run(self) -> Run:
        config = require_whole_model(self.model).config
        manifest = Manifest(tuple(self.subjects))
        return Run(manifest, config, self.out, self.model, None, Engine(1), "cpu", Console(verbosity=0))

    def adapt(self) -> OutputFolder:
        with Engine(1) as engine:
            run_stages(("fit", "map"), adapting_stages(), replace(self.run(), engine=engine))
        return self.out


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    return fit_small_model(tmp_path_factory.mktemp("given") / "model")


@pytest.fixture(scope="module")
def site(tmp_path_factory, given):
    site = Site(tmp_path_factory.mktemp("site"), given).add(LOCAL)
    before = {path: file_hash(path) for path in given.rglob("*") if path.is_file()}
    site.adapt()
    assert before == {path: file_hash(path) for path in given.rglob("*") if path.is_file()}, "the given model"
    return site


def load(model: OutputFolder) -> AnomalyModel:
    return AnomalyModel.load(model, require_whole_model(model).config, "cpu").with_stored_threshold(model)


def test_the_adapted_model_is_whole_and_knows_its_scanner(site):
    model = load(site.out)
    assert model.adapted_on == adapted_on(site.out) == LOCAL and adapted_on(site.model) is None
    assert number_of_controls(site.out) == number_of_controls(site.model) == len(read_trained_on(site.model))
    assert {file_fingerprint(s.images["t1w"]) for s in site.subjects} < read_trained_on(site.out)
    point = StoredPoint.load(site.out.operating_point)
    assert point is not None and point.n_healthy == LOCAL and len(point.largest_mm3) == LOCAL
    assert point.origin == point.point.origin == "8 healthy controls of this scanner"
    assert point.model == fit_identity(site.out) != fit_identity(site.model)
    fit = StageRecord.read(site.out.record("fit"))
    assert fit is not None and "local0" not in str(dict(fit.inputs)), "no ids"


def test_new_scans_of_the_scanner_score_like_healthy_ones(site):
    shares = {}
    for name, folder in (("given", site.model), ("adapted", site.out)):
        model = load(folder)
        z = [model.ensemble.predict(head(index, 99)[None], np.ones(GRID.size, bool), jobs=1).z for index in range(6)]
        shares[name] = float((np.stack(z) > 2.33).mean())
    # In a hundred healthy voxels, one; the brains are small and few.
    assert shares["given"] > 0.03 and shares["adapted"] < 0.02


def test_a_second_call_does_nothing_and_other_controls_adapt_it_again(site, tmp_path, capsys):
    capsys.readouterr()
    identity = fit_identity(site.out)
    site.adapt()
    assert capsys.readouterr().out.count("up to date, skipped") == 2 and fit_identity(site.out) == identity
    other = Site(tmp_path, site.model.root).add(7)
    first = fit_identity(other.adapt())
    failed = other.subjects[2]
    other.prepared([subject for subject in other.subjects if subject is not failed])
    assert fit_identity(other.adapt()) != first and adapted_on(other.out) == 6
    said = capsys.readouterr().out
    assert "1 of 7 controls left out, since the check or the preparation failed (sub-local2)" in said
    assert "6 controls: enough to set the overall level of the scores. With fewer than 20" in said
    assert "threshold" in said and "95 % bootstrap interval" in said


def test_it_is_packed_and_unpacked_with_its_scanner(site, tmp_path):
    pack(site.out, tmp_path / "model.voxout")
    card = read_card(tmp_path / "model.voxout")
    assert "| adapted | to another scanner, on 8 healthy scans of it |" in card
    assert f"| to | {number_of_controls(site.model)} healthy scans |" in card
    unpacked = unpack(tmp_path / "model.voxout", tmp_path / "unpacked")
    model, again = load(site.out), load(unpacked)
    assert again.adapted_on == LOCAL and again.threshold == model.threshold
    assert again.operating_point is not None and again.operating_point.origin == "8 healthy controls of this scanner"
    channels, inside = head(0, 99)[None], np.ones(GRID.size, bool)
    found, expected = (each.ensemble.predict(channels, inside, jobs=1).z for each in (again, model))
    np.testing.assert_allclose(found, expected, atol=0.1)


def test_maps_and_pages_say_what_the_model_was_adapted_to(site, tmp_path):
    config = site.run().config
    path = OutputFolder(tmp_path).native_map(site.subjects[0])
    image = Volume(np.zeros(GRID.grid.size_vox, np.float32), GRID.grid)
    write_map(path, image, MapContext.of_model(config, "abc", 3.6, LOCAL))
    about = json.loads(beside(path, ".json").read_text())
    assert about["Model"]["AdaptedTo"] == "8 healthy controls of this scanner"
    assert about["ThresholdSetOn"].startswith("8 healthy controls of this scanner, which have on average")
    write_map(path, image, MapContext.of_model(config, "abc", 3.6))
    assert "AdaptedTo" not in json.loads(beside(path, ".json").read_text())["Model"]
    assert run_summary(config, LOCAL)["Model adapted to"] == "8 healthy controls of this scanner"
    assert "Model adapted to" not in run_summary(config)


def test_scans_that_the_model_was_fitted_to_are_left_out(tmp_path, capsys):
    site = Site(tmp_path, fit_small_model(tmp_path / "model")).add(6)
    write_json(site.model.trained_on, [file_fingerprint(site.subjects[1].images["t1w"])])
    write_model_record(site.model, encoders=True)
    assert adapted_on(site.adapt()) == 5
    assert "1 left out, since the model was fitted to these scans (sub-local1)" in capsys.readouterr().out


# -- what is refused -------------------------------------------------------------------------------------------------
def subjects(count: int, group="control") -> tuple[SubjectRecord, ...]:
    return tuple(SubjectRecord(f"{group}{index}", group, {}) for index in range(count))


def test_patients_and_too_few_controls_are_refused_before_anything_is_done(tmp_path):
    model, out = OutputFolder(tmp_path / "model"), OutputFolder(tmp_path / "out")
    with pytest.raises(UserError, match="found 2 patients among 8 scans, expected healthy controls"):
        require_can_adapt(Manifest((*subjects(6), *subjects(2, "patient"))), model, out)
    with pytest.raises(UserError, match="found 4 healthy controls of this scanner, expected at least 5"):
        require_can_adapt(Manifest(subjects(4)), model, out)
    require_can_adapt(Manifest(subjects(5)), model, out)


def test_no_other_model_is_replaced(given):
    model = OutputFolder(given)
    with pytest.raises(UserError, match="lies in the model's own folder"):
        require_can_adapt(Manifest(subjects(5)), model, OutputFolder(given / "adapted"))
    with pytest.raises(UserError, match="holds a model of `voxout run`"):
        require_can_adapt(Manifest(subjects(5)), OutputFolder(given.parent / "other"), model)


def test_too_few_that_could_be_prepared_are_refused(tmp_path, given):
    site = Site(tmp_path, given).add(6)
    site.prepared(site.subjects[:4])
    with pytest.raises(UserError, match="found 4 healthy controls of this scanner"):
        site.adapt()
    assert not site.out.record("fit").exists() and CONTROLS > 4
