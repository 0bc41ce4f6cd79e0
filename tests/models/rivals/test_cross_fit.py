"""Cross-validated maps of methods, their forms, and methods of other packages that misbehave."""

from importlib import metadata
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from voxout.data_manifests.errors import UserError
from voxout.models.rivals import registry
from voxout.models.rivals.cross_fit import CrossFit
from voxout.models.rivals.forms import CALIBRATED, FORMS, RAW, SMOOTHED, Forms
from voxout.models.rivals.rival import checked_scores

from .small_heads import MASK, brain, bright_blob, controls, scan


class Brightness:
    """A method of another package: the brightness; it remembers what it was fitted on."""

    fewest_controls = 3
    fitted_on: ClassVar[list[tuple[str, ...]]] = []

    def fit(self, controls):
        self.keys = controls.keys
        Brightness.fitted_on.append(controls.keys)

    def score(self, subject):
        assert subject.key not in self.keys
        return subject.images[0]


class Fails(Brightness):
    def score(self, subject):
        if subject.key in ("sub-03", "sub-patient"):
            raise ZeroDivisionError("by nothing")
        return subject.images[0]


class Nan(Brightness):
    def score(self, subject):
        return np.where(subject.images[0] > 0.6, np.nan, subject.images[0])


class Flat(Brightness):
    def score(self, subject):
        return np.full(subject.inside.shape, 2.0)


class Small(Brightness):
    def score(self, subject):
        return subject.images[0][:, :, 1:]


class Unfit(Brightness):
    def fit(self, controls):
        raise KeyError("nothing")


class Greedy(Brightness):
    fewest_controls = 50


class NoScore:
    def fit(self, controls):
        pass


class NeedsArguments:
    def __init__(self, something):
        pass


OTHERS = (Brightness, Fails, Nan, Flat, Small, Unfit, Greedy, NoScore, NeedsArguments)


@pytest.fixture(autouse=True)
def other_package(monkeypatch):
    """Let another package offer the methods above."""
    Brightness.fitted_on.clear()
    points = [metadata.EntryPoint(cls.__name__.lower(), f"{__name__}:{cls.__name__}", registry.GROUP) for cls in OTHERS]
    points.append(metadata.EntryPoint("absent", "no_such_package:Method", registry.GROUP))
    every = metadata.entry_points
    monkeypatch.setattr(
        metadata, "entry_points", lambda **by: points if by == {"group": registry.GROUP} else every(**by)
    )
    monkeypatch.setattr(metadata.EntryPoint, "load", lambda self: _load(self))


def _load(point: metadata.EntryPoint):
    if point.name == "absent":
        raise ModuleNotFoundError("No module named 'no_such_package'")
    return next(cls for cls in OTHERS if cls.__name__.lower() == point.name)


def _fit(folder: Path, name: str, count: int = 12) -> CrossFit:
    patient = scan(bright_blob()[0])
    return CrossFit(name, controls(folder, count), {"sub-patient": lambda: patient})


def test_controls_are_scored_by_the_fit_without_them_and_subjects_by_all(tmp_path):
    fit = _fit(tmp_path, "brightness")
    fit.run()
    keys, null, folds = fit.null()
    assert keys == fit.controls.keys
    assert sorted(np.concatenate(folds)) == list(range(12))
    assert [len(keys) for keys in Brightness.fitted_on] == [12 - len(fold) for fold in folds]
    own = fit.controls.scan("sub-04")
    np.testing.assert_array_equal(null[4], MASK.transform(own.images[0]))
    np.testing.assert_allclose(fit.scores("sub-patient"), MASK.transform(bright_blob()[0]), rtol=1e-6)


def test_an_interrupted_comparison_goes_on_and_gives_the_same(tmp_path):
    whole = _fit(tmp_path / "whole", "z-score")
    whole.run()
    cut = _fit(tmp_path / "cut", "z-score")

    def stop(done, total):
        if done == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cut.run(stop)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "cut").glob("maps/**/*.npy")}
    assert len(kept) == 9
    cut.run()
    assert all(path.stat().st_mtime_ns == before for path, before in kept.items())
    assert cut.null()[1].tobytes() == whole.null()[1].tobytes()
    assert cut.scores("sub-patient").tobytes() == whole.scores("sub-patient").tobytes()


def test_a_method_that_fails_on_a_subject_is_named_and_the_others_go_on(tmp_path):
    fit = _fit(tmp_path, "fails")
    fit.run()
    assert {failure.key for failure in fit.failures} == {"sub-03", "sub-patient"}
    assert "fails: failed on sub-03 (ZeroDivisionError: by nothing)" in fit.failures[0].reason + fit.failures[1].reason
    keys, null, folds = fit.null()
    assert "sub-03" not in keys
    assert len(null) == 11
    assert sorted(np.concatenate(folds)) == list(range(11))
    assert fit.scores("sub-patient") is None


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("flat", r"flat: returned a constant map for each of \d controls, expected scores that differ"),
        ("unfit", r"unfit: could not be fitted \(KeyError: 'nothing'\)"),
        ("greedy", r"greedy: found 12 controls to fit it on, expected at least 63"),
    ],
)
def test_methods_that_cannot_be_used_are_refused_by_name(tmp_path, name, sentence):
    with pytest.raises(UserError, match=sentence):
        _fit(tmp_path, name).run()


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("nan", r"nan: failed on 12 of 12 controls, .* nan: returned \d+ values for sub-\d\d that are NaN or infinite"),
        (
            "small",
            r"small: failed on 12 of 12 .* returned a map of shape \(32, 32, 13\) for sub-\d\d, expected \(32, 32",
        ),
    ],
)
def test_maps_that_are_no_maps_are_refused_by_name(tmp_path, name, sentence):
    fit = _fit(tmp_path, name)
    fit.run()
    with pytest.raises(UserError, match=sentence):
        fit.null()


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("noscore", r"noscore: has no score, expected both"),
        ("needsarguments", r"needsarguments: the method of another package cannot be used \(TypeError"),
        ("absent", r"absent: .* cannot be used \(ModuleNotFoundError: No module named 'no_such_package'\)"),
        ("zscore", r"--methods: found zscore, expected some of intensity, .* Did you mean z-score\?"),
    ],
)
def test_methods_that_cannot_be_made(name, sentence):
    with pytest.raises(UserError, match=sentence):
        registry.make(name)


def test_methods_of_other_packages_are_listed_last_and_not_imported(monkeypatch):
    monkeypatch.setattr(metadata.EntryPoint, "load", lambda self: pytest.fail("imported"))
    assert registry.names()[: len(registry.ENTRIES)] == tuple(registry.ENTRIES)
    assert "brightness" in registry.names()


def test_text_is_no_map():
    with pytest.raises(UserError, match="words: returned a str for sub-patient, expected an array of numbers"):
        checked_scores("words", scan(brain(0)), "no map")


def test_forms_are_calibrated_as_voxouts_own_scores(tmp_path):
    fit = _fit(tmp_path, "z-score", count=20)
    fit.run()
    keys, null, folds = fit.null()
    inside = np.stack([MASK.transform(fit.controls.scan(key).inside) for key in keys])
    forms, nulls = Forms.fit(null, inside, folds, MASK, smoothing_mm=4.0)
    assert tuple(nulls) == FORMS
    np.testing.assert_array_equal(nulls[RAW], null)
    for form in (CALIBRATED, SMOOTHED):
        # One healthy voxel in a thousand exceeds 3.09.
        assert (nulls[form] > 3.09).mean() == pytest.approx(1e-3, rel=0.5)
    _, lesion = bright_blob()
    values = forms.of(fit.scores("sub-patient"), MASK.transform(MASK.brain_mask))
    at = MASK.transform(lesion)
    for form in (CALIBRATED, SMOOTHED):
        assert values[form][at].mean() > 3
    # Smoothing spreads the lesion and keeps its place.
    assert values[SMOOTHED].argmax() in np.flatnonzero(at)
