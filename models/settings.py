"""Settings of the `models` section of a configuration."""

import re
from typing import Annotated, ClassVar, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Field, field_validator

from ..data_manifests.settings import OldValues, Section, renamed
from ..preprocessing.settings import DerivedMapName

_PER_DIMENSION = re.compile(r"\s*([0-9.eE+-]+)\s*/\s*d\s*")


def _checked_gamma(gamma: float | str) -> float | str:
    resolve_gamma(gamma, 1)
    return gamma


def resolve_gamma(gamma: float | str, dimension: int) -> float | str:
    """Convert ``"0.1/d"`` to a number for latents of size `dimension`; return numbers, "scale" and "auto" unchanged."""
    if gamma in ("scale", "auto"):
        return gamma
    value = gamma
    if isinstance(gamma, str):
        match = _PER_DIMENSION.fullmatch(gamma)
        if match is None:
            raise ValueError(
                f'gamma is "{gamma}", expected a number, "scale", "auto" or a number per dimension such as "0.1/d"'
            )
        value = float(match.group(1)) / dimension
    if not 0 < float(value) < float("inf"):
        raise ValueError(f"gamma is {gamma}, expected a number above 0")
    return float(value)


def _each_once(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) < len(names):
        raise ValueError(f"contains duplicates: {', '.join(names)}. Name each once")
    return names


# An infinite number is refused with the sentence of `resolve_gamma`.
Gamma = Annotated[Annotated[float, Field(allow_inf_nan=True)] | str, AfterValidator(_checked_gamma)]
"""Coefficient of the RBF kernel: a number, "scale" (1/(d*variance)), "auto" (1/d), or per dimension ("0.1/d")."""


def _as_tuple(lengths: object) -> object:
    return lengths if isinstance(lengths, (list, tuple)) else (lengths,)


Length = Annotated[float, Field(gt=0, le=100)]
Plane = Literal["axial", "coronal", "sagittal", "volume"]


class EncoderSettings(Section):
    """Settings of the patch auto-encoder."""

    patch_size_mm: Annotated[tuple[Length, ...], BeforeValidator(_as_tuple), Field(min_length=1, max_length=8)] = (6.0,)
    """Edge of the patch, or of several patches encoded into one latent, as in `[6, 10]`; each is converted to the
    nearest odd number of voxels, at least 3. A patch of 30 mm is too large for a lesion of 1 ml."""
    planes: Annotated[tuple[Plane, ...], Field(min_length=1)] = ("volume",)
    """Planes of square patches, as in `[axial, coronal, sagittal]`; `volume`: cubes. Patches of several planes are
    encoded into one latent."""
    channels: Literal["modalities", "all"] = "all"
    """Input channels: the modalities, or the modalities and their derived maps."""
    latent_size: Annotated[int, Field(ge=1, le=1024, validation_alias=renamed("latent_size", "code_size"))] = 16
    """Number of latent dimensions."""
    width: Literal["paper", "wide"] = "wide"
    """Filters before the latent. `paper`: 3, 4, 12 as published for 15 voxels; `wide`: more filters, same depth."""
    norm: Literal["batch", "layer"] = "batch"
    """(experimental) Normalisation after the inner convolutions. `layer`: over the channels of each voxel, whatever the
    batch."""

    _planes_once = field_validator("planes")(_each_once)


class GuidanceSettings(Section):
    """Settings of the one-class SVMs that guide training."""

    weight: Annotated[float, Field(ge=0)] = 1e-4
    """lambda, the weight of the guidance loss, on the scale of its authors; 0: a plain auto-encoder. What guidance adds
    was measured in docs/method.md#conclusions."""
    largest_mse_ratio: Annotated[float, Field(gt=1)] = 2.0
    """Ratio of the reconstruction error to that after pre-training, above which lambda is halved (checked every 50
    steps): a detector cannot find what the latents do not encode. The first co-located batches alone raise the error
    by two fifths, without any guidance."""
    nu: Annotated[float, Field(gt=0, le=1)] = 0.1
    """nu of these one-class SVMs. They are fitted on m controls, half of those of a voxel; a nu below 1/m is raised to
    it, so that there can be an outlier."""
    gamma: Gamma = "scale"
    """Coefficient of their RBF kernel: a number, `scale` (1/(d variance)), `auto` (1/d), or per dimension, as
    `0.1/d`. On handwritten digits `scale` is worse than a fixed number; on brains the two were not compared at the
    default weight (docs/method.md#gamma-of-the-guidance)."""

    removed: ClassVar = {"support_share": 0.5, "expander_only_share": 0.5, "freeze_norm": True}


FamilyName = Literal["foreign", "shift", "constant", "blur", "sharpen", "noise", "warp", "pinch"]


class ContrastSettings(Section):
    """Settings of the contrast with synthetic edits: the encoder learns to tell edited from healthy patches."""

    weight: Annotated[float, Field(ge=0)] = 0.0
    """(experimental) mu, the weight of the contrast loss in the guided steps (docs/maps.md#contrast-with-edits); 0: no
    edits. At a weight of 1 it outweighs the reconstruction error, which rises: raise
    `models.guidance.largest_mse_ratio`, which would lower lambda. It needs at least 10 training controls."""
    copies: Annotated[int, Field(ge=1, le=1000)] = 8
    """Edited copies of each control, with eight edits each; fewer if their patches would not fit into memory."""
    families: Annotated[tuple[FamilyName, ...], Field(min_length=1)] = get_args(FamilyName)
    """Kinds of edits, as `models.learned.families`."""

    _families_once = field_validator("families")(_each_once)


class TrainingSettings(Section):
    """Settings of the training loop."""

    pretraining_steps: Annotated[int, Field(ge=1, le=10**7)] = 3000
    """Steps on patches of mixed voxels, reconstruction only."""
    guided_steps: Annotated[int, Field(ge=0, le=10**7)] = 600
    """Steps on co-located batches (patches of many controls at the same voxels) with the guidance loss."""
    patches_per_step: Annotated[int, Field(ge=2, le=10**6)] = 1024
    """Patches in a pre-training step."""
    controls_per_voxel: Annotated[
        int, Field(ge=3, le=10**6, validation_alias=renamed("controls_per_voxel", "controls_per_location"))
    ] = 96
    """Controls drawn at each of the 32 voxels of a guided step; fewer where fewer have brain at nearly all of these
    voxels."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 2e-3
    """Peak learning rate of pre-training."""
    guided_learning_rate: Annotated[float, Field(gt=0, le=1)] = 2e-4
    """Peak learning rate of the guided steps."""
    siamese_weight: Annotated[float, Field(ge=0)] = 0.0
    """(experimental) kappa, the weight of 1 - cos between co-located latents."""
    checkpoint_every: Annotated[int, Field(ge=1, le=10**7)] = 500
    """Steps between checkpoints, from which an interrupted training resumes."""

    removed: ClassVar = {"voxels_per_step": 32, "locations_per_step": 32}


# Constants that a plan of a run needs too, which is made without the libraries of the models.
FEWEST_TO_LEARN_FROM = 20
"""With fewer training participants, the scorer `learned` is left out."""
FOLDS = 5
"""Folds of the controls for cross-validation; with fewer participants, one is left out at a time."""
PARTICIPANTS_PER_COMPONENT = 5
"""Fewest participants for each whole-brain component."""
MOST_CONTROLS_OF_A_DETECTOR = 400
"""Controls that a one-class SVM is fitted on, since the time for more would grow with the square of their number. Its
scores correlate with those of one fitted on 1,200 controls with .996."""
PATCH_COMPONENTS = 8
"""Number of principal components of 3x3x3 voxels."""
ScoreName = Literal["distance", "decision", "log_ratio"]


class DetectorSettings(Section):
    """Settings of the voxel-wise one-class SVMs."""

    nu: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Upper bound on the share of controls outside the boundary; lower bound on the share kept as support vectors."""
    gamma: Gamma = "0.03/d"
    """Coefficient of the RBF kernel, as `models.guidance.gamma`."""
    latent_scaling: Annotated[
        Literal["whitened", "standardised", "raw"], Field(validation_alias=renamed("latent_scaling", "read_out"))
    ] = "whitened"
    """Scaling of the latents before the kernel. `whitened`: per voxel, with covariances pooled over neighbours;
    `standardised`: the same without the covariances, each latent dimension divided by its own standard deviation."""
    score: ScoreName = "distance"
    """`distance`: half the mean squared distance to the support vectors in the kernel's feature space; `decision`:
    minus the decision function, the same measured from the boundary of each voxel; `log_ratio`: log(offset / kernel
    sum), which keeps rising where no control is near."""

    removed: ClassVar = {"shrinkage": 0.01, "precision": "float16"}


ScorerName = (
    Literal["ocsvm", "mahalanobis", "intensity", "patches", "prototypes", "derived_features", "learned"]
    | DerivedMapName
)


CovariateName = Literal["age", "sex", "site"]


class EnsembleSettings(Section):
    """Settings of the scorers, their calibration and their combination."""

    scorers: Annotated[
        tuple[ScorerName, ...],
        Field(min_length=1, validation_alias=renamed("scorers", "readers")),
        BeforeValidator(OldValues({"hand_made": "derived_features"})),
    ] = (
        "ocsvm",
        "prototypes",
        "learned",
    )
    """`ocsvm`: one-class SVMs on the encoder's latents; `mahalanobis`: Mahalanobis distance on the same latents;
    `intensity`: z-scores with pooled variance; `patches`: principal components of 3x3x3 voxels; `prototypes`: the same,
    compared with healthy patches within 7 mm; `derived_features`: modalities and derived maps; `learned`: a network
    trained on synthetic edits of the controls; or the name of one derived map. Their calibrated maps are combined
    (docs/maps.md)."""
    members: Annotated[int, Field(ge=1, le=50)] = 1
    """Number of encoders, trained one after the other with `seed`, `seed` + 1, ...; the map is the mean over them
    (docs/maps.md#several-encoders). `--seeds 3` does the same."""
    covariates: tuple[CovariateName, ...] = ()
    """Columns of the manifest whose linear effect is regressed out of every feature (docs/maps.md#age-sex-and-site);
    the slopes are fitted on the training controls."""
    brain_components: Annotated[int, Field(ge=0, le=1000, validation_alias=renamed("brain_components", "patterns"))] = (
        10
    )
    """Principal components of the controls' whole brains (wide ventricles, for example) that are regressed out of every
    feature in the same way (docs/maps.md#whole-brain-components); at most one per five participants of the smallest
    training set of the cross-validation. 0: none."""
    p_norm: Annotated[float, Field(ge=1, le=100, validation_alias=renamed("p_norm", "power"))] = 2.0
    """Order of the p-norm that combines the -log10 p of the scorers. 1: their sum, which favours voxels on which all
    scorers agree; high: their maximum, which favours voxels that a single scorer finds."""
    prototypes_weight: Annotated[float, Field(gt=0, le=100)] = 0.5
    """Weight of the -log10 p of `prototypes` in that p-norm; each other scorer has the weight 1."""
    smoothing_mm: Annotated[float, Field(ge=0, le=50)] = 2.0
    """Standard deviation of the Gaussian that smooths the -log10 p of each scorer; 0: none."""
    surroundings_mm: Annotated[float, Field(ge=0, le=200)] = 16.0
    """Standard deviation of the Gaussian over which the combined -log10 p of a head is compared with that of the
    controls: where a whole part of a brain looks unusual, a voxel there counts less
    (docs/maps.md#surroundings). 0: no comparison."""
    mirrored_controls: bool = True
    """Learn from the left-right mirrored copy of each control, too, which is a second healthy example at each voxel of
    the symmetric template (docs/maps.md#mirrored-controls). The model gets no larger; its fit takes about twice as
    long."""
    age_years: Annotated[float, Field(ge=0, le=100)] = 0.0
    """Above 0, the map is calibrated on controls weighted by a Gaussian of their distance in age from the patient; its
    standard deviation in years, such as 15 (docs/maps.md#age). Needs ages in the manifest."""

    removed: ClassVar = {"patch_components": 8, "folds": 5, "pooling_mm": 3.0, "pooling_controls": 12.5}
    added: ClassVar = {"age_years": 0.0, "mirrored_controls": False, "prototypes_weight": 1.0}

    _scorers_once = field_validator("scorers", "covariates")(_each_once)

    @property
    def derived_maps(self) -> tuple[str, ...]:
        """Derived maps that have a scorer each."""
        return tuple(name for name in self.scorers if name in get_args(DerivedMapName))

    def weight_of(self, scorer: str) -> float:
        """Return the weight of a scorer in the p-norm."""
        return self.prototypes_weight if scorer == "prototypes" else 1.0

    @property
    def needs_encoder(self) -> bool:
        """Whether any scorer uses the latents of the encoder."""
        return bool({"ocsvm", "mahalanobis"} & set(self.scorers))


class LearnedSettings(Section):
    """Settings of the scorer `learned`, a network that tells synthetic edits of the controls from unedited tissue."""

    families: Annotated[tuple[FamilyName, ...], Field(min_length=1)] = get_args(FamilyName)
    """Kinds of edits: `foreign`: tissue of another control; `shift`: brighter or darker; `constant`: one intensity;
    `blur`; `sharpen`; `noise`; `warp`: random displacement; `pinch`: shrinkage or growth."""
    copies: Annotated[int, Field(ge=1, le=1000)] = 4
    """Edited copies of each control and of each mirrored one, with eight edits each."""
    steps: Annotated[int, Field(ge=1, le=10**7)] = 800
    """Training steps of each of the networks, one per fold of the controls."""

    _families_once = field_validator("families")(_each_once)


class ModelSettings(Section):
    """Settings of the encoder, the one-class SVMs and the ensemble."""

    encoder: EncoderSettings = EncoderSettings()
    guidance: GuidanceSettings = GuidanceSettings()
    contrast: ContrastSettings = ContrastSettings()
    training: TrainingSettings = TrainingSettings()
    detector: DetectorSettings = DetectorSettings()
    learned: LearnedSettings = LearnedSettings()
    ensemble: Annotated[EnsembleSettings, Field(validation_alias=renamed("ensemble", "fusion"))] = EnsembleSettings()
