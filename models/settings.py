"""Settings of the `models` section of a configuration."""

import re
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from ..data_manifests.settings import OldValues, Section, renamed
from ..preprocessing.settings import DerivedMapName

_PER_DIMENSION = re.compile(r"\s*([0-9.eE+-]+)\s*/\s*d\s*")


def _checked_gamma(gamma: float | str) -> float | str:
    resolve_gamma(gamma, 1)
    return gamma


def resolve_gamma(gamma: float | str, dimension: int) -> float | str:
    """Turn ``"0.1/d"`` into a number for latents of `dimension` numbers; leave numbers, "scale" and "auto" alone."""
    if gamma in ("scale", "auto"):
        return gamma
    value = gamma
    if isinstance(gamma, str):
        match = _PER_DIMENSION.fullmatch(gamma)
        if match is None:
            raise ValueError(f'gamma is "{gamma}", expected a number, "scale", "auto" or a number a dimension: "0.1/d"')
        value = float(match.group(1)) / dimension
    if not 0 < float(value) < float("inf"):
        raise ValueError(f"gamma is {gamma}, expected a number above 0")
    return float(value)


def _each_once(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) < len(names):
        raise ValueError(f"names one twice: {', '.join(names)}")
    return names


Gamma = Annotated[float | str, AfterValidator(_checked_gamma)]
"""Width of the RBF kernel: a number, "scale" (1/(d*variance)), "auto" (1/d), or per dimension ("0.1/d")."""


def _several(lengths: object) -> object:
    return lengths if isinstance(lengths, (list, tuple)) else (lengths,)


Length = Annotated[float, Field(gt=0)]
Plane = Literal["axial", "coronal", "sagittal", "volume"]


class EncoderSettings(Section):
    """The patch auto-encoder."""

    patch_size_mm: Annotated[tuple[Length, ...], BeforeValidator(_several), Field(min_length=1)] = (6.0,)
    """Edge of the patch, or of several that become one code; each converted to the nearest odd number of voxels."""
    planes: Annotated[tuple[Plane, ...], Field(min_length=1)] = ("volume",)
    """Planes of the patches; `volume`: cubes."""
    channels: Literal["modalities", "all"] = "all"
    """What the patch is of: the modalities, or they and their derived maps."""
    latent_size: Annotated[int, Field(ge=1, validation_alias=renamed("latent_size", "code_size"))] = 16
    width: Literal["paper", "wide"] = "wide"
    """Filters before the code. `paper`: 3, 4, 12 as published for 15 voxels; `wide`: more of them, same depth."""
    norm: Literal["batch", "layer"] = "batch"
    """What follows the inner convolutions: `layer` is over the channels of each voxel, and asks nothing of a batch."""

    _planes_once = field_validator("planes")(_each_once)


class GuidanceSettings(Section):
    """The one-class SVM that guides training (method section 3: the authors' scale of lambda)."""

    weight: Annotated[float, Field(ge=0)] = 1e-4
    """lambda; 0 leaves a plain auto-encoder."""
    largest_mse_ratio: Annotated[float, Field(gt=1)] = 2.0
    """Error of the reconstruction, against that after pre-training, above which lambda is halved: what a code has lost
    no detector finds. The first co-located batches alone raise it by two fifths, with no guidance at all."""
    nu: Annotated[float, Field(gt=0, le=1)] = 0.1
    gamma: Gamma = "scale"
    support_share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of the controls of a batch that solve the dual; the rest carry the loss."""
    expander_only_share: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of the guided steps with (expander, compactor) = (1, 0) before (1, 1)."""
    freeze_norm: bool = True
    """Hold the batch-norm statistics during guidance: co-located batches are no sample of the brain."""


class TrainingSettings(Section):
    pretraining_steps: Annotated[int, Field(ge=0)] = 3000
    """Steps on patches of mixed locations, reconstruction only."""
    guided_steps: Annotated[int, Field(ge=0)] = 600
    """Steps on co-located batches with the guidance loss."""
    patches_per_step: Annotated[int, Field(ge=2)] = 1024
    voxels_per_step: Annotated[int, Field(ge=1, validation_alias=renamed("voxels_per_step", "locations_per_step"))] = 32
    controls_per_voxel: Annotated[
        int, Field(ge=3, validation_alias=renamed("controls_per_voxel", "controls_per_location"))
    ] = 96
    """Controls drawn at each location of a guided step, where as many have brain at nearly all of them."""
    learning_rate: Annotated[float, Field(gt=0)] = 2e-3
    guided_learning_rate: Annotated[float, Field(gt=0)] = 2e-4
    siamese_weight: Annotated[float, Field(ge=0)] = 0.0
    """kappa, the weight of 1 - cos between co-located codes."""
    checkpoint_every: Annotated[int, Field(ge=1)] = 500


ScoreName = Literal["distance", "decision", "log_ratio"]


class DetectorSettings(Section):
    """One one-class SVM at every location."""

    nu: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Also the least share of controls that are kept as support vectors."""
    gamma: Gamma = "0.03/d"
    latent_scaling: Annotated[
        Literal["whitened", "standardised", "raw"], Field(validation_alias=renamed("latent_scaling", "read_out"))
    ] = "whitened"
    """What the codes go through before the kernel. `whitened`: per location, with covariances pooled over neighbours;
    `standardised`: the same without the covariances, each number by its own deviation."""
    shrinkage: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Weight of the whole brain's covariance, brought to the location's variance, in each location's."""
    score: ScoreName = "distance"
    """`distance`: how far away the support vectors lie in the kernel's space, half the mean of the squares; `decision`:
    minus the decision function, the same counted from the boundary of each location; `log_ratio`: log(offset / kernel
    sum), which goes on rising where no control is near."""
    precision: Literal["float16", "float32"] = "float16"


ScorerName = Literal["ocsvm", "mahalanobis", "intensity", "patches", "derived_features"] | DerivedMapName


CovariateName = Literal["age", "sex", "site"]


class EnsembleSettings(Section):
    """Which ways of reading a brain make the map, and how they are brought onto one scale."""

    scorers: Annotated[
        tuple[ScorerName, ...],
        Field(min_length=1, validation_alias=renamed("scorers", "readers")),
        BeforeValidator(OldValues({"hand_made": "derived_features"})),
    ] = (
        "ocsvm",
        "derived_features",
        "intensity",
        "extension",
    )
    """`ocsvm`: the encoder's codes and the one-class SVM; `mahalanobis`: the same codes; `intensity`: z-scores with
    pooled variance; `patches`: principal components of 3x3x3 voxels; `derived_features`: modalities and derived maps;
    or the name of one derived map."""
    members: Annotated[int, Field(ge=1, le=50)] = 1
    """Encoders, of `seed`, `seed` + 1, ..., trained one after the other; the map is their mean."""
    covariates: tuple[CovariateName, ...] = ()
    """Columns of the manifest whose linear effect on every feature is taken off, as learnt on the training controls."""
    brain_components: Annotated[int, Field(ge=0, validation_alias=renamed("brain_components", "patterns"))] = 10
    """Whole-brain patterns in which the controls differ, as wide ventricles, that are taken off every feature in the
    same way; at most one for five people of the smallest part of the cross-fitting. 0: none."""
    patch_components: Annotated[int, Field(ge=1)] = 8
    """Principal components of the reader `patches`."""
    folds: Annotated[int, Field(ge=2)] = 5
    """Parts of the controls for cross-fitting; with fewer controls, one at a time."""
    pooling_mm: Annotated[float, Field(ge=0)] = 3.0
    """Standard deviation of the Gaussian over which the spread of the null is pooled."""
    pooling_controls: Annotated[float, Field(ge=0)] = 12.5
    """How many controls' worth the whole brain's spread counts in each location's: few cannot tell how much they differ
    at one place."""
    p_norm: Annotated[float, Field(ge=1, le=100, validation_alias=renamed("p_norm", "power"))] = 2.0
    """How surprises are combined: the root of the sum of their powers. 1: their sum, which favours what all readers
    agree on; high: the largest, which favours what one of them alone sees."""
    smoothing_mm: Annotated[float, Field(ge=0)] = 2.0
    """Standard deviation of the Gaussian that smooths each reader's surprises; 0: none."""

    _named_once = field_validator("scorers", "covariates")(_each_once)

    def pooling_shrinkage(self, controls: int) -> float:
        """Weight of the whole brain's spread in each location's."""
        return self.pooling_controls / (self.pooling_controls + controls)

    @property
    def derived_maps(self) -> tuple[str, ...]:
        """Derived maps that are readers of their own."""
        return tuple(name for name in self.scorers if name in get_args(DerivedMapName))

    @property
    def needs_encoder(self) -> bool:
        """Whether some reader looks at codes."""
        return bool({"ocsvm", "mahalanobis"} & set(self.scorers))


class ModelSettings(Section):
    encoder: EncoderSettings = EncoderSettings()
    guidance: GuidanceSettings = GuidanceSettings()
    training: TrainingSettings = TrainingSettings()
    detector: DetectorSettings = DetectorSettings()
    ensemble: Annotated[EnsembleSettings, Field(validation_alias=renamed("ensemble", "fusion"))] = EnsembleSettings()

    @model_validator(mode="after")
    def _needs_pretraining(self) -> "ModelSettings":
        if self.training.pretraining_steps > 0:
            return self
        if self.training.guided_steps == 0 or self.guidance.weight == self.training.siamese_weight == 0:
            raise ValueError("training.pretraining_steps is 0 and no guided steps follow, expected steps to train for")
        if self.guidance.freeze_norm:
            raise ValueError(
                "training.pretraining_steps is 0 and guidance.freeze_norm true: the batch norms would be held before "
                "they have seen a patch. Set freeze_norm to false"
            )
        return self
