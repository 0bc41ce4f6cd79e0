"""Names of the rivals, one line each; other packages add theirs by an entry point.

A package that adds a method names its class in the group ``voxout.rivals``::

    [options.entry_points]
    voxout.rivals =
        my-method = my_package.my_module:MyMethod

Such a class is imported only when its name is asked for; it is called without arguments.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib import import_module, metadata
from types import MappingProxyType
from typing import Any

from ...data_manifests.errors import UserError
from .rival import Rival

GROUP = "voxout.rivals"
OWN = "voxout"
"""Name of the row of voxout's own map, which the others are compared with."""


@dataclass(frozen=True)
class Entry:
    """Where a method is, and what its table row says.

    Attributes
    ----------
    module, name : str
        Of the class; the module is in this package.
    title : str
    options : mapping
        Arguments of the class.
    """

    module: str
    name: str
    title: str
    options: Mapping[str, Any] = field(default_factory=dict)


_AE, _SVM = "autoencoders", "one_class_svms"
ENTRIES: Mapping[str, Entry] = MappingProxyType(
    {
        "intensity": Entry("intensity", "EqualisedIntensity", "Intensity alone, equalised histogram"),
        "z-score": Entry("z_score", "ZScore", "z-score at each voxel"),
        "patch-mahalanobis": Entry("patch_mahalanobis", "PatchMahalanobis", "Mahalanobis distance of patch components"),
        "ae-spatial": Entry(_AE, "SpatialAutoEncoder", "Auto-encoder, spatial code, residual"),
        "ae-dense": Entry(_AE, "DenseAutoEncoder", "Auto-encoder, dense code, residual"),
        "ae-skips": Entry(_AE, "SkipAutoEncoder", "Auto-encoder with skip connections, residual (a control)"),
        "vae-spatial": Entry(_AE, "SpatialVae", "Variational auto-encoder, spatial code, residual"),
        "vae-dense": Entry(_AE, "DenseVae", "Variational auto-encoder, dense code, residual"),
        "vae-restoration": Entry("vae_restoration", "VaeRestoration", "Variational auto-encoder, restoration"),
        "denoising-unet": Entry("denoising_unet", "DenoisingUNet", "Denoising U-Net"),
        "cevae": Entry("context_encoding", "ContextEncodingVae", "Context-encoding variational auto-encoder"),
        "two-vaes": Entry("two_vaes", "TwoVaes", "Dissimilarity of the latents of two auto-encoders"),
        "masked-ae": Entry("masked_ae", "MaskedAutoEncoder", "Masked auto-encoder with Monte-Carlo uncertainty"),
        "vqvae-transformer": Entry("vqvae_transformer", "VqvaeTransformer", "VQ-VAE, unlikely codes drawn again"),
        "patched-diffusion": Entry("patched_diffusion", "PatchedDiffusion", "Patched diffusion model"),
        "feature-inversion": Entry("feature_inversion", "FeatureInversion", "Feature inversion"),
        "deep-svdd": Entry("deep_svdd", "DeepSvdd", "Deep SVDD on patches"),
        "siamese-ocsvm": Entry(_SVM, "PatchOcsvm", "Siamese auto-encoder, OC-SVM per location", {"siamese": 1.0}),
        "siamese-ocsvm-patient": Entry(_SVM, "PatientOcsvm", "Siamese auto-encoder, OC-SVM per patient"),
        "ogae": Entry(_SVM, "PatchOcsvm", "OC-SVM-guided auto-encoder as published", {"guidance": 1e-2}),
        "learned": Entry("learned", "Learned", "Network trained on synthetic edits alone"),
    }
)  # fmt: skip
"""The methods that come with voxout, in the order of the report."""


def names() -> tuple[str, ...]:
    """Names of all methods, those of other packages last; none is imported."""
    others = sorted(point.name for point in metadata.entry_points(group=GROUP) if point.name not in ENTRIES)
    return (*ENTRIES, *dict.fromkeys(others))


def title_of(name: str) -> str:
    """Title of a method in the report: of another package's, its name."""
    return "voxout, the map of this run" if name == OWN else ENTRIES[name].title if name in ENTRIES else name


def make(name: str) -> Rival:
    """Return a method that is not fitted yet.

    Raises
    ------
    UserError
        There is no such method, or that of another package cannot be imported or lacks `fit` or `score`.
    """
    if name in ENTRIES:
        entry = ENTRIES[name]
        return getattr(import_module(f".{entry.module}", __package__), entry.name)(**entry.options)
    points = [point for point in metadata.entry_points(group=GROUP) if point.name == name]
    if not points:
        close = get_close_matches(name, names(), 1)
        advice = f"Did you mean {close[0]}?" if close else "See docs/rivals.md."
        raise UserError(f"--methods: found {name}, expected some of {', '.join(names())}. {advice}")
    try:
        rival = points[0].load()()
    except Exception as error:  # foreign code, which may fail in any way
        raise UserError(
            f"{name}: the method of another package cannot be used ({type(error).__name__}: {error}), expected a class "
            "that is called without arguments. Correct or uninstall that package."
        ) from error
    missing = [part for part in ("fit", "score") if not callable(getattr(rival, part, None))]
    if missing:
        raise UserError(f"{name}: has no {' and no '.join(missing)}, expected both. Correct the method.")
    return rival
