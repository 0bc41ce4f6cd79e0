"""The ablation study, on a small made-up brain in which it is known what each scorer sees."""

from dataclasses import replace
from types import SimpleNamespace

import ablation
import method
import method_subjects
import numpy as np
import pytest
from ablation import ABLATIONS, DEFAULT, Ablation, AblationStudy, differences, report
from method_cohort import LABELS
from method_subjects import Subject
from scipy import ndimage
from voxout.data_manifests.images.grid import Grid
from voxout.models.anomaly.fit import NULL
from voxout.models.features.feature_store import LatentStore
from voxout.preprocessing.patches.voxel_mask import VoxelMask

GRID = Grid((18, 18, 18), np.diag([2.0, 2.0, 2.0, 1.0]))
SEES = {"ocsvm": 1.0, "mahalanobis": 0.5, "prototypes": 0.0, "learned": 1.5}
"""What a lesion adds to the -log10 p of each scorer."""


class MadeUpStudy(AblationStudy):
    """A study with made-up fits of 12 controls, and six painted and four healthy scans."""

    def __init__(self, out, seeds=2):
        self.out, self.seeds, self.part, self.jobs, self.cache = out, seeds, "validate", 1, {}
        self.mirrored = True
        brain = np.zeros(GRID.size_vox, bool)
        brain[1:-1, 1:-1, 1:-1] = True
        self.mask = VoxelMask(GRID, brain)
        self.train = [f"sub-control{n:02}" for n in range(12)]
        self.null_keys = tuple(self.train)
        self.inside = np.ones((12, self.mask.size), bool)
        painted = []
        for number in range(6):
            labels = np.zeros(GRID.size_vox, np.int32)
            for lesion in range(1, 4):
                x = 1 + 5 * (lesion - 1) + number % 2
                labels[x : x + 3, 6:9, 4 + number : 7 + number] = lesion
            kinds = np.array([LABELS["dark"], LABELS["bright"], LABELS["blur"]], np.uint8)
            painted.append(Subject.from_labels(f"sub-painted{number}", self.mask, brain, labels, kinds))
        nothing, none = np.zeros(GRID.size_vox, np.int32), np.zeros(0, np.uint8)
        healthy = [Subject.from_labels(f"sub-healthy{n}", self.mask, brain, nothing, none) for n in range(4)]
        self.test = method_subjects.TestSet(tuple(painted), tuple(healthy), ())
        self.manifest = {key: SimpleNamespace(age=None) for key in (*self.train, *(s.key for s in self.test.subjects))}

    def fitted(self, name, seed):
        """Write the scores of a fit, if they are not there yet."""
        folder = self.folder(name, seed)
        if not self.is_fitted(name, seed):
            for scorer in method.FITS[name].scorers:
                random = np.random.default_rng([seed, len(name), len(scorer)])
                null = LatentStore.create(folder / NULL / scorer, self.mask, 1)
                for key in self.train:
                    null.write(key, self._noise(random)[:, None])
                read = LatentStore.create(folder / "read" / scorer, self.mask, 1)
                for subject in self.test.subjects:
                    read.write(subject.key, (self._noise(random) + SEES[scorer] * (subject.lesions > 0))[:, None])
            (folder / "done.json").write_text(
                self.identity(method.FITS[name], self.settings_of(method.FITS[name], self.mirrored))
            )
        return folder

    def _noise(self, random):
        smooth = ndimage.gaussian_filter(random.standard_normal(GRID.size_vox), 0.7) * 3
        return np.abs(self.mask.transform(smooth)).astype(np.float32)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return MadeUpStudy(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def figures(study):
    names = (DEFAULT, "without ocsvm", "without prototypes", "without learned", "without smoothing")
    # With half the weight, a scorer that sees nothing does too little harm to be certain.
    equal = {"prototypes_weight": 1.0}
    rows = {name: replace(ABLATIONS[name], settings={**ABLATIONS[name].settings, **equal}) for name in names}
    return {name: study.figures(name, row) for name, row in rows.items()}


def test_every_row_differs_from_the_default_in_one_thing():
    default = ABLATIONS[DEFAULT]
    assert default == Ablation(method.METHODS["ensemble"])
    for name, row in ABLATIONS.items():
        others = [part for part in row.parts if part not in default.parts]
        assert all(scorer in method.FITS[fit].scorers for fit, scorer in row.parts), name
        changed = [
            bool(row.settings),
            row.one_scale,
            not row.mirrored,
            bool(others) or len(row.parts) < len(default.parts),
        ]
        assert sum(changed) == (name != DEFAULT), name


def test_fits_of_a_row_have_the_settings_that_it_is_named_after():
    def fits(name):
        return {fit: method.Study.settings_of(method.FITS[fit]) for fit, _ in ABLATIONS[name].parts}

    whole = fits("without whole-brain components")
    assert [s.ensemble.brain_components for s in whole.values()] == [0, 10, 0]
    (whitening, *_) = fits("without whitening (standardised latents)").values()
    default = method.Study.settings_of(method.FITS["OgAE"])
    assert whitening.detector == default.detector.model_copy(update={"latent_scaling": "standardised"})
    derived = [method.FITS[fit] for fit, _ in ABLATIONS["without derived maps"].parts]
    assert [(fit.scorers[0], fit.derived) for fit in derived] == [
        ("ocsvm", False),
        ("prototypes", True),
        ("learned", False),
    ]
    assert method.ENCODERS["OgAE, without derived maps"]["encoder"] == {"channels": "modalities"}
    assert method.ENCODERS["AE"]["guidance"]["weight"] < 1e-10


def test_fits_of_before_keep_their_identity():
    """A saved fit is used again only if the text is the same: no key may be added for fits with all channels."""
    fit = method.FITS["OgAE"]
    assert "derived" not in method.Study.identity(fit, method.Study.settings_of(fit))
    fit = method.FITS["OgAE, without derived maps"]
    assert '"derived": false' in method.Study.identity(fit, method.Study.settings_of(fit))


def test_differences_are_paired_by_seed_and_subject(study, figures):
    parts = (ABLATIONS[name].parts for name in (DEFAULT, "without learned"))
    default, without = (study.evaluated("a row", own, prototypes_weight=1.0) for own in parts)
    expected = without.minus(default).kinds["all"].average_precision
    text = differences({"without learned": _by_seed(figures, "without learned")}, "average_precision")
    estimate = expected.estimate()
    assert f"{estimate.value:.3f} ({estimate.ci_low:.3f} to {estimate.ci_high:.3f})" in text
    each = [
        one.kinds["all"].average_precision.value - other.kinds["all"].average_precision.value
        for one, other in zip(figures["without learned"], figures[DEFAULT], strict=True)
    ]
    assert len(each) == 2 and ", ".join(f"{value:+.4f}" for value in each) in text
    assert np.mean(each) == pytest.approx(estimate.value)


def test_what_sees_lesions_is_missed_and_what_sees_nothing_is_not(figures):
    by_seed = {name: _by_seed(figures, name) for name in figures if name != DEFAULT}
    text = differences(by_seed, "average_precision")
    rows = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("| without")]
    values = [float(row[1].split()[0]) for row in rows]
    assert values == sorted(values), "largest loss first"
    certain = {row[0].strip(): row[3].strip() for row in rows}
    assert certain["without learned"] == "worse" and certain["without prototypes"] == "better"
    assert "Certainly better: without prototypes." in text
    assert "without learned" in text.split("Certainly worse: ")[1].split(".")[0]


def test_the_report_has_all_rows_and_metrics(figures):
    text = report(figures)
    for name in figures:
        assert f"| {name} |" in text
    assert text.count("| difference from the default |") == len(method.FIGURES)
    assert report({DEFAULT: figures[DEFAULT]}).count("difference") == 0


def test_undefined_differences_come_last_and_are_not_certain(figures):
    undefined = [_undefined(one) for one in _by_seed(figures, "without learned")]
    text = differences({"nothing": undefined, "without ocsvm": _by_seed(figures, "without ocsvm")}, "auroc")
    assert text.index("| without ocsvm |") < text.index("| nothing | - | +nan, +nan | no |")


def test_one_scale_for_the_whole_brain(study):
    null = np.abs(np.random.default_rng(0).standard_normal((12, study.mask.size))).astype(np.float32)
    null[:, :500] *= 5
    study.shrinkage = 1.0
    scale = study.calibrated(null, 0)[0].scale
    study.shrinkage = None
    assert np.ptp(scale) == 0
    assert scale[0] == pytest.approx(np.sqrt(np.square(null, dtype=float).mean()), rel=1e-5)
    assert np.ptp(study.calibrated(null, 0)[0].scale) > 0
    one, default = (study.figures(name, ABLATIONS[name])[0] for name in ("one scale for the whole brain", DEFAULT))
    assert one.kinds["all"].auroc.value != default.kinds["all"].auroc.value


def test_fits_that_are_not_saved_are_named(tmp_path):
    study = MadeUpStudy(tmp_path)
    default = ABLATIONS[DEFAULT]
    assert study.missing(default) == ["OgAE-0", "OgAE-1", "prototypes", "learned-0", "learned-1"]
    study.figures(DEFAULT, default)
    assert study.missing(default) == []
    assert study.missing(ABLATIONS["without guidance"]) == ["AE-0", "AE-1"]
    (tmp_path / "fits" / "OgAE-1" / "done.json").write_text("{}")
    assert study.missing(default) == ["OgAE-1"], "a fit with other settings"


def test_without_scans_nothing_is_done(tmp_path, capsys):
    assert ablation.main(["--data", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    assert "skipped: no real scans" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def _by_seed(figures, name):
    return [one.minus(default) for one, default in zip(figures[name], figures[DEFAULT], strict=True)]


def _undefined(figures):
    measure = figures.kinds["all"].auroc
    nothing = replace(measure, value=np.nan, draws=np.full_like(measure.draws, np.nan), why_none="no such lesion")
    return replace(figures, kinds={**figures.kinds, "all": replace(figures.kinds["all"], auroc=nothing)})
