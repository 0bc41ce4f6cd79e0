"""Ablation study on real scans with simulated lesions: scorers, guidance, ensemble, calibration.

    python benchmarks/method.py --data ../shared/data --out /tmp/method [--seeds 3] [--part validate]

The cohort is that of `method_cohort`: 50 IXI scans for training, 10 healthy scans held out, 10 painted scans for the
choice of settings (validate) and 10 for the reported results (test). Choose settings with ``--part validate``; use the
test part for the table only. Intermediate results are saved in OUT, and a second call resumes: OUT/run holds the
prepared scans, OUT/encoders the encoders, OUT/fits the -log10 p of the scorers. The tables are printed and saved as
OUT/table-<part>.md. With all methods that takes hours; ``--methods zpool ensemble`` is a quick look.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
from method_cohort import make_cohort
from method_measures import MethodFigures, calibration, cell, evaluate, joined_by_kind, overview, table
from method_subjects import TestSet
from voxout.data_manifests.atomic_write import atomic_write
from voxout.data_manifests.cohort.manifest import read_manifest
from voxout.data_manifests.cohort.output_paths import OutputFolder
from voxout.data_manifests.cohort.subject import original_key, participant_of_key
from voxout.evaluation.metrics.lesion_metrics import cluster_curve, operating_threshold
from voxout.evaluation.settings import EvaluationSettings
from voxout.models.anomaly.ages import AgeCalibration
from voxout.models.anomaly.calibration import Calibration, calibrate, folds_of, z_from_neg_log10_p
from voxout.models.anomaly.ensemble import combined
from voxout.models.anomaly.fit import NULL, fit_ensemble
from voxout.models.anomaly.smoothing import smoothed
from voxout.models.anomaly.surroundings import Surroundings
from voxout.models.encoder.checkpoint import Checkpoint, trained_by
from voxout.models.encoder.training import train_encoder
from voxout.models.features.feature_store import LatentStore
from voxout.models.features.source import FeatureSource
from voxout.models.settings import FOLDS, EnsembleSettings, LearnedSettings, ModelSettings
from voxout.preprocessing.intensity.channels import Channels
from voxout.preprocessing.intensity.derived_maps import DERIVED_MAPS
from voxout.preprocessing.patches.mirrored import with_copies
from voxout.preprocessing.patches.volume_store import VolumeStore
from voxout.preprocessing.prepared_images import PreparedImages

SEED = 1
DERIVED = tuple(DERIVED_MAPS)
# A negligible weight: batches and steps are those of a guided encoder, so that only the guidance differs.
_UNGUIDED = {"weight": 1e-12}
OWN_FAMILIES: Mapping[str, tuple[str, ...]] = {
    "dark": ("shift", "constant"),
    "bright": ("shift", "constant"),
    "blur": ("blur",),
    "texture": ("noise",),
    "swelling": ("pinch", "warp"),
}
"""Families of edits that resemble a kind of simulated lesion."""
FAMILIES = LearnedSettings().families


def _variant(name: str, families: Sequence[str]) -> str:
    """Name of a fit or an encoder that is trained without some families of edits."""
    return f"{name} without {' and '.join(families)}"


def _others(families: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name in FAMILIES if name not in families)


def _with_edits(families: Sequence[str], lambda_: float) -> Mapping[str, object]:
    """Encoder that learns to tell edits from healthy tissue, on cubes of 5 voxels at 2 mm."""
    # The contrast raises the reconstruction error, which says nothing about the guidance here.
    return {
        "encoder": {"patch_size_mm": 10, "latent_size": 16},
        "guidance": {"weight": lambda_, "largest_mse_ratio": 1e6},
        "contrast": {"weight": 1.0, "families": families},
        "training": {"guided_steps": 3000, "guided_learning_rate": 2e-3},
    }


_WITH_EDITS = {"AE, edits": _UNGUIDED["weight"], "OgAE, edits": 1e-3}
"""Weight of guidance."""
_EDIT_VARIANTS = {
    _variant(name, families): _with_edits(_others(families), lambda_)
    for name, lambda_ in _WITH_EDITS.items()
    for families in OWN_FAMILIES.values()
}
ENCODERS: Mapping[str, Mapping[str, object]] = {
    "AE": {"guidance": _UNGUIDED},
    "OgAE": {},
    "OgAE, lambda 1e-3": {"guidance": {"weight": 1e-3}},
    "OgAE, lambda 1e-3, gamma fixed": {"guidance": {"weight": 1e-3, "gamma": "0.1/d"}},
    "AE, axial patches of 10 mm": {"guidance": _UNGUIDED, "encoder": {"planes": ("axial",), "patch_size_mm": 10}},
    "AE, three planes of 10 mm": {
        "guidance": _UNGUIDED,
        "encoder": {"planes": ("axial", "coronal", "sagittal"), "patch_size_mm": 10},
    },
    "AE, cubes of 6 and 10 mm": {"guidance": _UNGUIDED, "encoder": {"patch_size_mm": (6, 10)}},
    "AE, latent size 32": {"guidance": _UNGUIDED, "encoder": {"latent_size": 32}},
    "OgAE, without derived maps": {"encoder": {"channels": "modalities"}},
    "AE, layer norm": {"guidance": _UNGUIDED, "encoder": {"norm": "layer"}},
    **{name: _with_edits(FAMILIES, lambda_) for name, lambda_ in _WITH_EDITS.items()},
    **_EDIT_VARIANTS,
}
"""Changes to the default settings of the models, by name."""


@dataclass(frozen=True)
class Fit:
    """Scorers that are fitted together.

    Attributes
    ----------
    scorers : tuple of str
    encoder : str, optional
        One of `ENCODERS`.
    changes : mapping
        Changes to the settings of the models.
    derived : bool
        Whether the derived maps are among the channels.
    """

    scorers: tuple[str, ...]
    encoder: str | None = None
    changes: Mapping[str, object] = field(default_factory=dict)
    derived: bool = True

    @property
    def is_random(self) -> bool:
        """Whether the fit depends on the seed."""
        return self.encoder is not None or "learned" in self.scorers


DETECTORS: Mapping[str, Mapping[str, object]] = {
    "decision": {"score": "decision", "nu": 0.3, "gamma": "0.1/d"},
    "decision, same gamma": {"score": "decision", "nu": 0.3},
    "distance, nu 0.3": {"nu": 0.3},
    "log-ratio": {"score": "log_ratio"},
    "standardised": {"latent_scaling": "standardised", "gamma": "1/d"},
    "standardised, same gamma": {"latent_scaling": "standardised"},
    "raw": {"latent_scaling": "raw", "score": "decision", "gamma": 0.01, "nu": 0.03},
}
"""Changes to the default settings of the one-class SVMs, by name; `raw` is as published."""
_BOTH = ("ocsvm", "mahalanobis")
_NO_COMPONENTS = {"ensemble": {"brain_components": 0}}
FITS: Mapping[str, Fit] = {
    "plain": Fit(("intensity", "patches", "derived_features", *DERIVED)),
    "plain, without components": Fit(("intensity", "patches", "derived_features", "extension"), None, _NO_COMPONENTS),
    **{name: Fit(_BOTH, name, derived=name != "OgAE, without derived maps") for name in ENCODERS},
    "OgAE, without components": Fit(_BOTH, "OgAE", _NO_COMPONENTS),
    **{f"OgAE {name}": Fit(("ocsvm",), "OgAE", {"detector": changes}) for name, changes in DETECTORS.items()},
    "prototypes": Fit(("prototypes",)),
    "learned": Fit(("learned",)),
    "learned, without components": Fit(("learned",), None, _NO_COMPONENTS),
    "learned, without derived maps": Fit(("learned",), derived=False),
    **{
        _variant("learned", families): Fit(("learned",), None, {"learned": {"families": _others(families)}})
        for families in OWN_FAMILIES.values()
    },
}

Parts = tuple[tuple[str, str], ...]
"""Pairs of a fit and one of its scorers."""

_OCSVM, _DERIVED, _PATCHES, _ZPOOL, _EXTENSION = (
    ("OgAE", "ocsvm"),
    ("plain", "derived_features"),
    ("plain", "patches"),
    ("plain", "intensity"),
    ("plain", "t1w_extension"),
)
_LEARNED = ("learned", "learned")
_PROTOTYPES = ("prototypes", "prototypes")
_UNLEARNED = (_OCSVM, _PROTOTYPES)
_ALL = (*_UNLEARNED, _LEARNED)
_NAMES = ("OC-SVM", "prototypes", "learned")
_OTHERS = (_DERIVED, _ZPOOL, _EXTENSION)
METHODS: Mapping[str, Parts] = {
    "zpool": (("plain, without components", "intensity"),),
    "zpool, components regressed out": (_ZPOOL,),
    "3x3x3 patches": (_PATCHES,),
    "prototypes": (_PROTOTYPES,),
    "derived features, Mahalanobis": (_DERIVED,),
    **{f"{name} only": (("plain", f"t1w_{name}"),) for name in DERIVED},
    **{f"{name}, Mahalanobis": ((name, "mahalanobis"),) for name in ("AE", "OgAE", *_WITH_EDITS)},
    **{f"{name}, OC-SVM": ((name, "ocsvm"),) for name in ("AE", "OgAE", *_WITH_EDITS)},
    "OgAE, OC-SVM, decision function": (("OgAE decision", "ocsvm"),),
    "OgAE, OC-SVM, log-ratio": (("OgAE log-ratio", "ocsvm"),),
    "OgAE, OC-SVM on standardised latents, gamma 1/d": (("OgAE standardised", "ocsvm"),),
    "OgAE, OC-SVM on raw latents, nu .03, gamma .01": (("OgAE raw", "ocsvm"),),
    "learned": (_LEARNED,),
    "ensemble": _ALL,
    **{
        f"ensemble without {name}": tuple(p for p in _ALL if p != part) for name, part in zip(_NAMES, _ALL, strict=True)
    },
    "ensemble of OC-SVM, zpool and learned": (_OCSVM, _ZPOOL, _LEARNED),
    "ensemble of OC-SVM, derived features, zpool, extension and learned": (_OCSVM, *_OTHERS, _LEARNED),
    "ensemble of OC-SVM, derived features, zpool and extension": (_OCSVM, *_OTHERS),
    "ensemble with zpool": (*_ALL, _ZPOOL),
    "ensemble with extension": (*_ALL, _EXTENSION),
    "ensemble with 3x3x3 patches": (*_ALL, _PATCHES),
    "ensemble with 3x3x3 patches, without OC-SVM": (_PATCHES, *_ALL[1:]),
    "ensemble, decision function instead of distance": (("OgAE decision", "ocsvm"), *_ALL[1:]),
    "ensemble, Mahalanobis instead of OC-SVM": (("OgAE", "mahalanobis"), *_ALL[1:]),
    **{f"ensemble with {name}": ((name, "ocsvm"), *_ALL[1:]) for name in _WITH_EDITS},
}
SEARCHED: Mapping[str, Parts] = {
    **{f"{name}, OC-SVM": ((name, "ocsvm"),) for name in ENCODERS if name not in _EDIT_VARIANTS and FITS[name].derived},
    **{f"OgAE, OC-SVM, {name}": ((f"OgAE {name}", "ocsvm"),) for name in ("decision, same gamma", "distance, nu 0.3")},
    "derived features, without components": (("plain, without components", "derived_features"),),
    "OgAE, OC-SVM, without components": (("OgAE, without components", "ocsvm"),),
    "ensemble of OC-SVM, derived features, zpool and extension, without components": tuple(
        (f"{fit}, without components", scorer) for fit, scorer in (_OCSVM, *_OTHERS)
    ),
}
"""Additional methods for the validation part only."""
SMOOTHED = (
    "zpool",
    "zpool, components regressed out",
    "derived features, Mahalanobis",
    "prototypes",
    "AE, OC-SVM",
    "OgAE, OC-SVM",
    "OgAE, OC-SVM, decision function",
    "OgAE, Mahalanobis",
    *(f"{name}, OC-SVM" for name in _WITH_EDITS),
)
"""Single scorers that are also evaluated with smoothing, as in the ensemble."""
ISOLATED = ("ensemble", "ensemble without learned")
"""Combinations that are also evaluated without a comparison with the surroundings."""
LEFT_OUT = (
    "learned",
    *(f"{name}, OC-SVM, smoothed" for name in _WITH_EDITS),
    *(f"ensemble with {name}" for name in _WITH_EDITS),
    "ensemble",
    "ensemble without OC-SVM",
    "ensemble of OC-SVM, zpool and learned",
    "ensemble of OC-SVM, derived features, zpool, extension and learned",
)
"""Methods that are also evaluated for each kind of lesion without the edits that resemble it, in all their scorers."""
_ISOLATED = {"surroundings_mm": 0.0, "age_years": 0.0}
_ALONE = {"smoothing_mm": 0.0, **_ISOLATED}
_ENSEMBLES = tuple(name for name in METHODS if name.startswith("ensemble"))
FIGURES = ("average_precision", "average_precision_per_subject", "auroc", "auroc_fpr30", "found_at_1", "found_at_4")
DIFFERENCES = (
    ("OgAE, OC-SVM", "AE, OC-SVM"),
    ("OgAE, edits, OC-SVM", "AE, edits, OC-SVM"),
    ("OgAE, edits, OC-SVM, smoothed", "AE, edits, OC-SVM, smoothed"),
    ("OgAE, edits, OC-SVM, smoothed", "OgAE, OC-SVM, smoothed"),
    ("ensemble with OgAE, edits", "ensemble with AE, edits"),
    ("OgAE, Mahalanobis", "AE, Mahalanobis"),
    ("OgAE, OC-SVM", "OgAE, OC-SVM on standardised latents, gamma 1/d"),
    ("OgAE, OC-SVM, log-ratio", "OgAE, OC-SVM on standardised latents, gamma 1/d"),
    ("OgAE, OC-SVM", "OgAE, Mahalanobis"),
    ("OgAE, OC-SVM, smoothed", "OgAE, Mahalanobis, smoothed"),
    ("OgAE, OC-SVM", "derived features, Mahalanobis"),
    ("OgAE, OC-SVM, smoothed", "derived features, Mahalanobis, smoothed"),
    *(("ensemble", name) for name in _ENSEMBLES[1:]),
    *((name, f"{name}, without surroundings") for name in ISOLATED),
    ("ensemble", "zpool, smoothed"),
    ("ensemble", "zpool"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path("method_benchmark"))
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--part", choices=("validate", "test"), default="test")
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="names of table rows; all by default")
    options = parser.parse_args(arguments)
    if not has_scans(options.data):
        return 0
    if code := prepare(options.data, options.out, options.jobs):
        return code
    text = Study(options.out, options.seeds, options.part, options.jobs).tables(options.methods)
    print(text)
    (options.out / f"table-{options.part}.md").write_text(text)
    return 0


def has_scans(data: Path) -> bool:
    """Whether the real scans are there; says what is missing otherwise."""
    if not (data / "ixi").is_dir():
        print(f"skipped: no real scans at {data} (expected the folders ixi, ms and lesion_masks there)")
    return (data / "ixi").is_dir()


def prepare(data: Path, out: Path, jobs: int) -> int:
    """Make the cohort and prepare its scans; return the exit code of a stage that stopped, or 0."""
    manifest = make_cohort(data, out / "cohort", seed=0)
    for stage in ("check", "prepare", "extract"):
        command = [sys.executable, "-m", "voxout.pipeline.cli", stage, str(manifest), str(out / "run")]
        code = subprocess.run([*command, "--seed", str(SEED), "--jobs", str(jobs)], check=False).returncode
        if code not in (0, 3):
            return code
    return 0


@dataclass(frozen=True, eq=False)
class ScorerOutput:
    """Values of -log10 p of one scorer.

    Attributes
    ----------
    null : ndarray, (S, P)
        Of the training controls and their mirrored copies, cross-validated.
    test : mapping from key to ndarray, (P,)
        Of the test subjects.
    """

    null: np.ndarray
    test: Mapping[str, np.ndarray]


class Study:
    """Fits and evaluates all methods on a prepared cohort, with mirrored copies of the training controls or without."""

    shrinkage: float | None = None
    """Weight of the whole brain's scale in that of each voxel, in the calibrations of the evaluation."""

    def __init__(self, out: Path, seeds: int, part: str, jobs: int, *, mirrored: bool = True):
        self.out, self.seeds, self.part, self.jobs, self.mirrored = out, seeds, part, jobs, mirrored
        self.cache: dict[tuple[str, str, int, float], ScorerOutput] = {}
        self.run = OutputFolder(out / "run")
        self.manifest = read_manifest(out / "cohort" / "cohort.csv")
        self.store, self.channels = VolumeStore.open(self.run.patches), Channels.load(self.run.patches)
        self.mask = self.store.grid
        controls = [r for r in self.manifest.controls if r.key in self.store.keys]
        self.train = [r.key for r in controls if r.split == "train"]
        self.held_out = [r.key for r in controls if r.split == "held_out"]
        self.test = TestSet.read(self.manifest, self.run, self.mask, part)
        # What the null consists of: the training controls and, as in a fit, their mirrored copies.
        self.null_keys = with_copies(self.train) if mirrored else tuple(self.train)
        self.inside = np.stack([self.mask.transform(self.store.inside_of(key)) for key in self.null_keys])
        self.keys = [*self.held_out, *(r.key for r in self.manifest.patients)]

    # -- results saved on disk -----------------------------------------------------------------------------------
    def checkpoint(self, name: str, seed: int) -> Checkpoint:
        print(f"encoder {name}, seed {seed}", file=sys.stderr, flush=True)
        settings = ModelSettings.model_validate(ENCODERS[name])
        return train_encoder(
            self.store.only(self.channels.chosen(settings.encoder.channels)),
            settings,
            self.out / "encoders" / f"{name}-{seed}",
            train=self.train,
            held_out=self.held_out,
            seed=seed,
            channels=self.channels,
        )

    def folder(self, name: str, seed: int) -> Path:
        own = name if self.mirrored else f"{name}, not mirrored"
        return self.out / "fits" / (f"{own}-{seed}" if FITS[name].is_random else own)

    @staticmethod
    def settings_of(fit: Fit, mirrored: bool = True) -> ModelSettings:
        # Smoothing, the comparison with the surroundings and the ages are applied in the evaluation.
        own = {"scorers": fit.scorers, "mirrored_controls": mirrored, **_ALONE}
        ensemble = {**fit.changes.get("ensemble", {}), **own}
        return ModelSettings.model_validate({**fit.changes, "ensemble": ensemble})

    def is_fitted(self, name: str, seed: int) -> bool:
        """Whether a fit with these settings is saved."""
        done, fit = self.folder(name, seed) / "done.json", FITS[name]
        return done.exists() and done.read_text() == self.identity(fit, self.settings_of(fit, self.mirrored))

    def fitted(self, name: str, seed: int) -> Path:
        """Folder of a fit, with the -log10 p of the training controls (null) and of the test subjects."""
        fit, folder = FITS[name], self.folder(name, seed)
        if self.is_fitted(name, seed):
            return folder
        settings, store, channels = self.settings_of(fit, self.mirrored), self.store, self.channels
        if not fit.derived:
            store, channels = store.only(channels.modalities), replace(channels, derived=())
        source = FeatureSource(channels, (self.checkpoint(fit.encoder, seed),) if fit.encoder else ())
        print(f"fit {folder.name}", file=sys.stderr, flush=True)
        ensemble = fit_ensemble(store, self.train, source, settings, folder, seed=seed, jobs=self.jobs)
        for key in self.keys:
            prepared = PreparedImages.from_record(self.manifest[key], self.run, channels.modalities)
            images = channels.read(prepared, self.mask.grid)
            inside = self.mask.transform(prepared.read_brain_mask(self.mask.grid).voxels)
            confounds = ensemble.confounds.values(images, inside)
            for scorer in ensemble.scorers:
                neg_log10_p = scorer.neg_log10_p(images, inside, confounds, jobs=self.jobs)
                LatentStore.create(folder / "read" / scorer.name, self.mask, 1).write(key, neg_log10_p[:, None])
        with atomic_write(folder / "done.json") as temporary:
            temporary.write_text(self.identity(fit, settings))
        return folder

    @staticmethod
    def identity(fit: Fit, settings: ModelSettings) -> str:
        """All settings of a fit as text; a saved fit is used only if they are equal."""
        training = trained_by(ModelSettings.model_validate(ENCODERS[fit.encoder])) if fit.encoder else None
        scorers = settings.model_dump(mode="json", include={"detector", "ensemble"})
        scorers["ensemble"].pop("age_years")
        if "learned" in fit.scorers:
            scorers |= settings.model_dump(mode="json", include={"learned"})
        channels = {} if fit.derived else {"derived": False}
        return json.dumps({"scorers": scorers, "encoder": training, **channels}, indent=1)

    # -- evaluation ----------------------------------------------------------------------------------------------
    def scorer_output(self, fit: str, scorer: str, seed: int, settings: EnsembleSettings) -> ScorerOutput:
        """Smoothed -log10 p of the training controls (cross-validated) and of the test subjects."""
        seed = seed if FITS[fit].is_random else 0
        key = (fit, scorer, seed, settings.smoothing_mm)
        if key not in self.cache:
            folder, subjects = self.fitted(fit, seed), (*self.test.subjects, *self.test.patients)
            null = LatentStore.open(folder / NULL / scorer, self.null_keys, self.mask)
            test = LatentStore.open(folder / "read" / scorer, [s.key for s in subjects], self.mask)
            output = ScorerOutput(
                np.stack([null.subject(null_key)[:, 0] for null_key in self.null_keys]),
                {s.key: np.array(test.subject(s.key)[:, 0]) for s in subjects},
            )
            if settings.smoothing_mm > 0 and scorer != "learned":
                smooth = partial(smoothed, grid=self.mask, sigma_mm=settings.smoothing_mm)
                rows = [smooth(row, brain) for row, brain in zip(output.null, self.inside, strict=True)]
                scale, null = self.calibrated(np.stack(rows), seed)
                output = ScorerOutput(
                    null, {s.key: scale.neg_log10_p(smooth(output.test[s.key], s.inside)) for s in subjects}
                )
            self.cache[key] = output
        return self.cache[key]

    def calibrated(self, null: np.ndarray, seed: int) -> tuple[Calibration, np.ndarray]:
        folds = folds_of([participant_of_key(key) for key in self.null_keys], FOLDS, seed)
        return calibrate(null, self.inside, folds, self.mask, shrinkage=self.shrinkage)

    def in_place(self, null: np.ndarray, seed: int) -> Calibration:
        calibration, null[:] = self.calibrated(null, seed)
        return calibration

    def z_maps(self, parts: Parts, seed: int, settings: EnsembleSettings) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """z-maps of the training controls (null, (S, P)) and of the test subjects, computed as in `Ensemble`."""
        each = [self.scorer_output(fit, scorer, seed, settings) for fit, scorer in parts]
        weights = [np.float32(settings.weight_of(scorer)) for _, scorer in parts]

        def together(neg_log10_ps: Iterable[np.ndarray], inside: np.ndarray) -> np.ndarray:
            weighted = (weight * own for weight, own in zip(weights, neg_log10_ps, strict=True))
            return combined(weighted, inside, settings.p_norm)

        null = np.stack([together((one.null[n] for one in each), b) for n, b in enumerate(self.inside)])
        scale, null = self.calibrated(null, seed)
        subjects = (*self.test.subjects, *self.test.patients)
        values = {s.key: scale.neg_log10_p(together((one.test[s.key] for one in each), s.inside)) for s in subjects}
        if settings.surroundings_mm > 0:
            sigma_mm = settings.surroundings_mm
            surroundings = Surroundings.fit(null, self.inside, self.mask, sigma_mm, partial(self.in_place, seed=seed))
            values = {
                s.key: surroundings.calibration.neg_log10_p(
                    values[s.key] / surroundings.divisor(values[s.key], s.inside)
                )
                for s in subjects
            }
        folds = folds_of([participant_of_key(key) for key in self.null_keys], FOLDS, seed)
        known = [self.manifest[original_key(key)].age for key in self.null_keys]
        new_null = partial(np.empty, null.shape, np.float32)
        ages = AgeCalibration.fit(null, self.inside, folds, self.mask, known, settings.age_years, new_null)
        if ages is not None:
            with_age = {s.key: age for s in subjects if (age := self.manifest[s.key].age) is not None}
            values |= {key: ages.neg_log10_p(values[key], age) for key, age in with_age.items()}
        return z_from_neg_log10_p(null), {key: z_from_neg_log10_p(value) for key, value in values.items()}

    def by_seed(self, name: str, parts: Parts, **ensemble: float) -> list[MethodFigures]:
        """Metrics of a method for each seed, or for one if seeds do not matter; `ensemble`: changes to the settings."""
        settings = ModelSettings().ensemble.model_copy(update=ensemble)
        seeds = range(self.seeds if any(FITS[fit].is_random for fit, _ in parts) else 1)
        print(f"evaluating {name}", file=sys.stderr, flush=True)
        return [evaluate(name, self.z_maps(parts, seed, settings)[1], self.test) for seed in seeds]

    def evaluated(self, name: str, parts: Parts, **ensemble: float) -> MethodFigures:
        """Metrics of a method, averaged over seeds."""
        first, *others = self.by_seed(name, parts, **ensemble)
        return first.averaged_with(*others, name=name)

    def left_out(self, name: str) -> MethodFigures:
        """Metrics for each kind of lesion without its own families of edits; for all kinds, the mean over the kinds."""
        method = name.removesuffix(", smoothed")
        changes = {} if "ensemble" in name else _ALONE if method == name else _ISOLATED
        methods = {}
        for kind, families in OWN_FAMILIES.items():
            without = ((_variant(fit, families), scorer) for fit, scorer in METHODS[method])
            parts = tuple(new if new[0] in FITS else old for new, old in zip(without, METHODS[method], strict=True))
            methods[kind] = self.evaluated(_variant(f"{name},", families), parts, **changes)
        return joined_by_kind(methods, f"{name}, own families left out")

    def tables(self, names: Sequence[str] | None = None) -> str:
        """Tables of the methods with these names; of all methods by default."""
        methods = {**METHODS, **(SEARCHED if self.part == "validate" else {})}
        # The ensemble is smoothed; single scorers are compared without and with smoothing.
        rows = {n: partial(self.evaluated, n, p, **({} if "ensemble" in n else _ALONE)) for n, p in methods.items()}
        for suffix, group in (("smoothed", SMOOTHED), ("without surroundings", ISOLATED)):
            for name in group:
                title = f"{name}, {suffix}"
                rows[title] = partial(self.evaluated, title, METHODS[name], **_ISOLATED)
        rows |= {f"{name}, own families left out": partial(self.left_out, name) for name in LEFT_OUT}
        if unknown := set(names or ()) - rows.keys():
            raise SystemExit(f"no method {', '.join(sorted(unknown))}; there are: {', '.join(rows)}")
        figures = {name: rows[name]() for name in names or rows}
        every = [*figures.values()]
        text = [table(every, "all"), table(every, "dark")]
        text += [overview(every, figure) for figure in FIGURES]
        pairs = [pair for pair in DIFFERENCES if figures.keys() >= set(pair)]
        differences = [figures[one].minus(figures[other]) for one, other in pairs]
        text += [overview(differences, figure) for figure in FIGURES] if differences else []
        text += [self.calibration_table()] if "ensemble" in figures else []
        return "\n".join(text)

    def calibration_table(self) -> str:
        """Calibration of the ensemble on the held-out healthy scans, at the threshold of the training controls."""
        settings, rows = ModelSettings().ensemble, []
        evaluation = EvaluationSettings()
        smallest = int(np.ceil(evaluation.smallest_cluster_mm3 / self.mask.grid.voxel_volume_mm3 - 1e-6))
        for seed in range(self.seeds):
            null, z_maps = self.z_maps(METHODS["ensemble"], seed, settings)
            false_cluster_thresholds = []
            for key, z, brain in zip(self.null_keys, null, self.inside, strict=True):
                if key != original_key(key):
                    continue
                volume = self.mask.inverse_transform(np.where(brain, z, -np.inf).astype(np.float32), -np.inf)
                nothing = np.zeros(volume.shape, np.int32)
                false_cluster_thresholds.append(
                    cluster_curve(volume, nothing, smallest_voxels=smallest)[0].false_cluster_thresholds
                )
            threshold = float(operating_threshold(false_cluster_thresholds, 1.0)[0])
            found = calibration(z_maps, self.test.healthy, threshold)
            rows.append(f"| {seed} | {threshold:.2f} | {cell(found.share_below_p001)} | {cell(found.false_clusters)} |")
        head = ["| seed | z at 1 false cluster | share with p < .001 (.0007-.0014) | false clusters (0.6-1.5) |"]
        return "\n".join([*head, "|---|---|---|---|", *rows]) + "\n"


if __name__ == "__main__":
    sys.exit(main())
