"""Adaptation of a model to labelled patients: the adapted model, what is told of it, and what is refused."""

import json
from dataclasses import replace

import numpy as np
import pytest
from voxout.data_manifests.cohort.output_paths import OutputFolder, beside
from voxout.data_manifests.cohort.subject import Manifest, SubjectRecord
from voxout.data_manifests.errors import UserError
from voxout.data_manifests.images.volume import Volume, write_volume
from voxout.data_manifests.open_file import file_hash
from voxout.data_manifests.typed_json import load_json
from voxout.evaluation.scoring.gain import NAMES
from voxout.evaluation.scoring.operating_point import StoredPoint
from voxout.models.anomaly.control_nulls import ControlNulls
from voxout.models.anomaly.learn import LabelSettings
from voxout.models.labels.fusion import Fusion
from voxout.pipeline.adapt import adapt_to_labels
from voxout.pipeline.model.anomaly_model import AnomalyModel
from voxout.pipeline.model.map_files import MapContext, write_map
from voxout.pipeline.model.model_files import labelled_patients, number_of_controls, read_trained_on
from voxout.pipeline.model.pack import pack
from voxout.pipeline.model.unpack import read_card, unpack
from voxout.pipeline.model.whole_model import require_whole_model
from voxout.pipeline.run import RunOptions
from voxout.pipeline.stages.adapt import require_can_adapt
from voxout.pipeline.stages.labels import require_labels
from voxout.pipeline.stages.order import learning_stages
from voxout.pipeline.stages.report_pages import run_summary
from voxout.pipeline.workflow.console import Console
from voxout.pipeline.workflow.engine import Engine
from voxout.pipeline.workflow.records import StageRecord, file_fingerprint, write_json
from voxout.pipeline.workflow.runner import Run, run_stages
from voxout.pipeline.workflow.stage_inputs import fit_identity

from ..model.small_model import CONTROLS, GRID, MASK, SETTINGS, brains, fit_small_model

PATIENTS = 7
LESION = np.zeros(MASK.shape, bool)
LESION[4:6, 4:6, 5:7] = True


def head(index: int, seed: int) -> np.ndarray:
    """A brain with a bright lesion at a place of its own."""
    image = brains(index + 1, seed)[index, 0].astype(np.float32)
    return (image + 0.25 * np.roll(LESION, index % 4, axis=2)).clip(0, 1) * MASK


class Site:
    """Prepared scans of labelled patients, and an output folder."""

    def __init__(self, root, model):
        self.root, self.model, self.out = root, OutputFolder(model), OutputFolder(root / "adapted")
        self.subjects: list[SubjectRecord] = []

    def add(self, count: int, empty: tuple[int, ...] = ()) -> "Site":
        for index in range(count):
            scan, mask = self.root / f"scan{index}.nii.gz", self.root / f"lesion{index}.nii.gz"
            image = Volume(head(index, 7), GRID.grid)
            lesion = Volume(np.roll(LESION, index % 4, axis=2) & (index not in empty), GRID.grid)
            write_volume(scan, image)
            write_volume(mask, lesion)
            subject = SubjectRecord(f"ill{index}", "patient", {"t1w": scan}, lesion_mask=mask)
            for path, volume in (
                (self.out.prepared_image(subject, "t1w"), image),
                (self.out.prepared_brain_mask(subject), Volume(MASK, GRID.grid)),
                (self.out.prepared_lesion_mask(subject), lesion),
            ):
                path.parent.mkdir(parents=True, exist_ok=True)
                write_volume(path, volume)
            StageRecord("prepare", {"t1w": file_fingerprint(scan)}, {}).write(self.out.subject_record(subject))
            self.subjects.append(subject)
        self.prepared(self.subjects)
        return self

    def prepared(self, subjects) -> None:
        StageRecord("prepare", {}, {}, tuple(s.key for s in subjects)).write(self.out.record("prepare"))

    def adapt(self, settings: LabelSettings | None = None) -> OutputFolder:
        config = require_whole_model(self.model).config
        with Engine(1) as engine:
            manifest = Manifest(tuple(self.subjects))
            run = Run(manifest, config, self.out, self.model, None, engine, "cpu", Console(verbosity=0))
            run_stages(("fit", "map"), learning_stages(settings or LabelSettings()), run)
        return self.out


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    return fit_small_model(tmp_path_factory.mktemp("given") / "model", keep_controls=True)


@pytest.fixture(scope="module", params=[False, True], ids=["weights", "head"])
def site(request, tmp_path_factory, given):
    site = Site(tmp_path_factory.mktemp("site"), given).add(PATIENTS)
    before = {path: file_hash(path) for path in given.rglob("*") if path.is_file()}
    site.adapt(LabelSettings(request.param, 0.5 if request.param else 0.0))
    assert before == {path: file_hash(path) for path in given.rglob("*") if path.is_file()}, "the given model"
    return site


def load(model: OutputFolder) -> AnomalyModel:
    return AnomalyModel.load(model, require_whole_model(model).config, "cpu").with_stored_threshold(model)


def predict(model: AnomalyModel, index: int = 0, seed: int = 99) -> np.ndarray:
    return model.ensemble.predict(head(index, seed)[None], np.ones(GRID.size, bool), jobs=1).z


# -- the adapted model -------------------------------------------------------------------------------------------------
def test_the_adapted_model_is_whole_and_keeps_the_other_beside_it(site):
    model, given = load(site.out), load(site.model)
    assert model.labelled_patients == labelled_patients(site.out) == PATIENTS
    assert given.labelled_patients is labelled_patients(site.model) is None and given.without_labels is given
    assert number_of_controls(site.out) == number_of_controls(site.model)
    before = model.without_labels
    np.testing.assert_array_equal(predict(before), predict(given))
    assert before.labelled_patients is None and np.abs(predict(model) - predict(given)).max() > 0.01
    assert model.adapted_on is None and read_trained_on(site.out) == read_trained_on(site.model)
    point = StoredPoint.load(site.out.operating_point)
    assert point is not None and point.model == fit_identity(site.out) and model.threshold == point.threshold
    fit = StageRecord.read(site.out.record("fit"))
    assert fit is not None and "ill0" not in str(dict(fit.inputs)), "no ids"


def test_what_is_gained_is_told_for_left_out_patients(site):
    found = load_json(site.out.adaptation / "adaptation.json")
    assert found["patients"] == PATIENTS and set(found["gain_is_shown"]) == set(NAMES) and len(found["sentences"]) == 3
    assert set(found["weights"]) == {"ocsvm", "intensity", "prototypes"} and "ill" not in json.dumps(found)
    for gain in found["gains"]:
        low = gain["difference"]["ci_low"]
        assert found["gain_is_shown"][gain["metric"]] <= (low > 0), "an interval that holds 0 is no gain"
    rows = (site.out.adaptation / "patients.csv").read_text().splitlines()
    assert len(rows) == 1 + PATIENTS and rows[1].startswith("sub-ill0,1,")
    means = np.array([row.split(",")[2:] for row in rows[1:]], float).mean(axis=0)
    own = next(gain for gain in found["gains"] if gain["metric"] == "average_precision_per_subject_mean")
    np.testing.assert_allclose(means, [own["before"]["value"], own["after"]["value"]], atol=1e-4)


def test_the_threshold_keeps_its_meaning(site):
    model = load(site.out)
    point = model.operating_point
    assert point is not None and point.controls is not None
    allowed = model.config.evaluation.false_clusters
    assert np.mean(point.controls.clusters) <= allowed and point.n_healthy == CONTROLS
    # In a hundred healthy voxels, one.
    healthy = brains(8, 123)[:, 0].astype(np.float32)
    z = [model.ensemble.predict(each[None], np.ones(GRID.size, bool), jobs=1).z for each in healthy]
    assert (np.stack(z) > 2.33).mean() < 0.035


def test_it_is_packed_and_unpacked(site, tmp_path):
    pack(site.out, tmp_path / "model.voxout")
    card = read_card(tmp_path / "model.voxout")
    assert f"| learnt | to {PATIENTS} labelled patients: how the scorers are combined |" in card
    again, model = load(unpack(tmp_path / "model.voxout", tmp_path / "unpacked")), load(site.out)
    assert again.labelled_patients == PATIENTS and again.threshold == model.threshold
    np.testing.assert_allclose(predict(again), predict(model), atol=0.1)
    np.testing.assert_allclose(predict(again.without_labels), predict(model.without_labels), atol=0.1)


def test_a_second_call_does_nothing_and_other_settings_learn_anew(tmp_path, given, capsys):
    site = Site(tmp_path, given).add(3)
    site.adapt()
    first = fit_identity(site.out)
    capsys.readouterr()
    site.adapt()
    assert capsys.readouterr().out.count("up to date, skipped") == 2 and fit_identity(site.out) == first
    site.adapt(LabelSettings(head=True))
    assert fit_identity(site.out) != first
    assert "no gain shown" in capsys.readouterr().out, "three patients show none"


def test_equal_weights_give_the_model_itself(given):
    """The stored scores of the controls, calibrated again with equal weights, are those of the fit."""
    model, out = load(OutputFolder(given)), OutputFolder(given)
    controls = ControlNulls.open(
        out.patches, out.latents, model.ensemble, model.source, model.config.models, seed=0, jobs=1
    )
    names = tuple(scorer.name for scorer in model.ensemble.scorers)
    learnt, null = controls.calibrated(model.ensemble, Fusion(names, np.ones(len(names)), 2))
    again = replace(model, ensemble=replace(model.ensemble, learnt=learnt))
    np.testing.assert_allclose(predict(again), predict(model), atol=1e-5)
    # What all weights have in common is calibrated away.
    learnt, _ = controls.calibrated(model.ensemble, Fusion(names, np.full(len(names), 3.0), 2))
    again = replace(model, ensemble=replace(model.ensemble, learnt=learnt))
    np.testing.assert_allclose(predict(again), predict(model), atol=1e-3)
    assert (null >= 0).all() and null.shape == (10, GRID.size)


def test_the_map_rises_with_each_scorer(given):
    model = load(OutputFolder(given))
    out, names = OutputFolder(given), tuple(scorer.name for scorer in model.ensemble.scorers)
    controls = ControlNulls.open(
        out.patches, out.latents, model.ensemble, model.source, model.config.models, seed=0, jobs=1
    )
    learnt, _ = controls.calibrated(model.ensemble, Fusion(names, np.array([0.25, 4.0, 1.0]), 2))
    # The comparison with the surroundings lowers a voxel in a brain that is unusual around it.
    ensemble = replace(model.ensemble, learnt=replace(learnt, surroundings=None))
    outputs = ensemble.outputs(head(0, 99)[None], np.ones(GRID.size, bool), jobs=1)
    before = ensemble.combine(outputs)[0]
    for row in range(3):
        raised = outputs.neg_log10_ps.copy()
        raised[row] += 1
        assert (ensemble.combine(replace(outputs, neg_log10_ps=raised))[0] >= before).all()


def test_maps_and_pages_say_what_was_learnt(tmp_path):
    subject = SubjectRecord("a", "patient", {})
    path, image = OutputFolder(tmp_path).native_map(subject), Volume(np.zeros(MASK.shape, np.float32), GRID.grid)
    config = require_config()
    write_map(path, image, MapContext.of_model(config, "abc", 3.6, None, 9))
    model = json.loads(beside(path, ".json").read_text())["Model"]
    assert model["LearntFrom"] == "9 labelled patients" and "AdaptedTo" not in model
    write_map(path, image, MapContext.of_model(config, "abc", 3.6))
    assert "LearntFrom" not in json.loads(beside(path, ".json").read_text())["Model"]
    assert run_summary(config, None, 9)["Scorers combined as learnt from"] == "9 labelled patients"
    assert "Scorers combined as learnt from" not in run_summary(config)


def require_config():
    from voxout.pipeline.config.config import Config

    return Config.model_validate(SETTINGS)


def test_patients_without_a_lesion_voxel_and_failed_ones_are_left_out(tmp_path, given, capsys):
    site = Site(tmp_path, given).add(5, empty=(1,))
    site.prepared([subject for subject in site.subjects if subject.subject_id != "ill3"])
    assert labelled_patients(site.adapt()) == 3
    said = capsys.readouterr().out
    assert "1 left out, with no lesion voxel in the scored brain (sub-ill1)" in said
    assert "1 left out, since the check or the preparation failed (sub-ill3)" in said


# -- what is refused ---------------------------------------------------------------------------------------------------
def patients(count: int, tmp_path, **more) -> tuple[SubjectRecord, ...]:
    return tuple(
        SubjectRecord(f"p{n}", "patient", {"t1w": tmp_path / f"{n}.nii"}, lesion_mask=tmp_path / f"m{n}.nii", **more)
        for n in range(count)
    )


def test_what_cannot_be_learnt_from_is_refused_before_anything_is_done(tmp_path, given):
    model, out = OutputFolder(given), OutputFolder(tmp_path / "out")
    own = patients(3, tmp_path)
    require_labels(Manifest(own), model, out)
    control = SubjectRecord("c", "control", {"t1w": tmp_path / "c.nii"})
    with pytest.raises(UserError, match="1 healthy control among 4 scans, expected patients .* `voxout adapt-scanner`"):
        require_labels(Manifest((*own, control)), model, out)
    with pytest.raises(UserError, match=r"1 of 3 patients have no lesion mask \(sub-p0\)"):
        require_labels(Manifest((replace(own[0], lesion_mask=None), *own[1:])), model, out)
    with pytest.raises(UserError, match="found labels of 1 patient, expected at least 2 different persons"):
        require_labels(Manifest(own[:1]), model, out)
    sessions = tuple(replace(own[0], session_id=str(number)) for number in range(3))
    with pytest.raises(UserError, match="found labels of 1 patient, expected at least 2"):
        require_labels(Manifest(sessions), model, out)


def test_scans_of_training_controls_and_places_of_other_models_are_refused(tmp_path, given):
    model = OutputFolder(fit_small_model(tmp_path / "model"))
    own = patients(3, tmp_path)
    own[1].images["t1w"].write_bytes(b"a scan")
    write_json(model.trained_on, [file_fingerprint(own[1].images["t1w"])])
    with pytest.raises(UserError, match=r"1 labelled patient \(sub-p1\) with a scan that the model was fitted to"):
        require_labels(Manifest(own), model, OutputFolder(tmp_path / "out"))
    with pytest.raises(UserError, match="lies in the model's own folder"):
        require_labels(Manifest(own), OutputFolder(given), OutputFolder(given / "adapted"))
    with pytest.raises(UserError, match="holds another model"):
        require_labels(Manifest(own), OutputFolder(tmp_path), OutputFolder(given))


def test_the_folders_of_both_adaptations_are_not_mixed_up(site):
    controls = tuple(SubjectRecord(f"c{number}", "control", {}) for number in range(5))
    with pytest.raises(UserError, match="expected a new folder or one of `voxout adapt-scanner`"):
        require_can_adapt(Manifest(controls), site.model, site.out)


def test_models_without_scores_of_their_controls_or_with_ages_or_labels_are_refused(tmp_path, site):
    packed = Site(tmp_path / "a", fit_small_model(tmp_path / "packed")).add(3)
    with pytest.raises(UserError, match="no cross-validated scores of the training controls, expected the output"):
        packed.adapt()
    settings = SETTINGS | {"models": SETTINGS["models"] | {"ensemble": SETTINGS["models"]["ensemble"]}}
    settings["models"]["ensemble"] = settings["models"]["ensemble"] | {"age_years": 15.0}
    ages = tuple(20.0 + number for number in range(24))
    of_age = fit_small_model(tmp_path / "ages", settings=settings, ages=ages, keep_controls=True)
    with pytest.raises(UserError, match="calibrated to the age"):
        Site(tmp_path / "b", of_age).add(3).adapt()
    with pytest.raises(UserError, match="was adapted to labels already"):
        Site(tmp_path / "c", site.out.root).add(3).adapt()


def test_labels_without_a_lesion_voxel_are_refused(tmp_path, given):
    site = Site(tmp_path, given).add(3, empty=(0, 1))
    with pytest.raises(UserError, match="found labels of 1 patient with a lesion voxel in the scored brain, expected"):
        site.adapt()
    assert not site.out.record("fit").exists()


@pytest.mark.parametrize(
    ("head", "weight", "match"),
    [(False, 1.0, "Add --head"), (True, -1.0, "expected 0 or more"), (True, float("nan"), "expected 0 or more")],
)
def test_a_variance_weight_that_cannot_be_used_is_refused(tmp_path, given, head, weight, match):
    options = RunOptions(Manifest(patients(3, tmp_path)), tmp_path / "out", (), model=given)
    with pytest.raises(UserError, match=match):
        adapt_to_labels(options, lambda: Console(verbosity=-1), head=head, variance_weight=weight)
