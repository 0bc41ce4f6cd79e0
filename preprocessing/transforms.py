"""The steps of preparation as MONAI transforms of dictionaries, for a `Compose` of one's own.

The values are MetaTensors, (1, X, Y, Z), with axes towards right, anterior and superior (MONAI's `Orientationd`). The
steps are those of `prepare_subject`, which does not need MONAI: its import takes seconds.
"""

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
from monai.config.type_definitions import KeysCollection
from monai.data.meta_tensor import MetaTensor
from monai.transforms.inverse import InvertibleTransform
from monai.transforms.transform import MapTransform
from monai.utils.enums import TraceKeys

from ..data_manifests.errors import UserError
from ..data_manifests.images.grid import Grid
from ..data_manifests.images.volume import Volume
from .brain_extraction.extract import extract_brain
from .intensity.bias_field import correct_bias_field
from .intensity.percentile_scaling import normalise
from .registration.coregistration import UNMOVED, align_to_t1w, one_thread
from .registration.register import register_to_template
from .registration.resampling import ras_affine, resample
from .registration.template import load_template
from .registration.template_transform import TemplateTransform
from .settings import (
    BiasFieldSettings,
    BrainExtractionSettings,
    PreprocessingSettings,
    RegistrationSettings,
)
from .subject_inputs import require_intensities

_DEFAULTS = PreprocessingSettings()


class _Step(MapTransform):
    """Step of preparation. SimpleITK runs on one thread, which gives the same bits in any program."""

    def __init__(self, keys: KeysCollection, mask_key: str, allow_missing_keys: bool = False):
        super().__init__(keys, allow_missing_keys)
        self.mask_key = mask_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        with one_thread():
            return self._changed(dict(data))

    def _changed(self, data: dict[Hashable, Any]) -> dict[Hashable, Any]:
        raise NotImplementedError

    def _mask_on(self, data: Mapping[Hashable, Any], grid: Grid) -> Volume:
        """Return the brain mask, on the grid of an image in the space of the T1w."""
        mask = _read(data, self.mask_key)
        mask = mask.with_voxels(mask.voxels > 0)
        return mask if mask.grid.same_as(grid) else resample(mask, grid, UNMOVED.transform, "linear")


class ExtractBraind(_Step):
    """Add the brain mask of a T1w head scan; see `extract_brain`.

    Parameters
    ----------
    keys : str
        The T1w.
    mask_key : str
        Name of the mask: MetaTensor of bool.
    settings : BrainExtractionSettings
    seed : int
    """

    def __init__(
        self,
        keys: str = "t1w",
        mask_key: str = "brain_mask",
        settings: BrainExtractionSettings = _DEFAULTS.brain_extraction,
        *,
        seed: int = 1,
    ):
        super().__init__(keys, mask_key)
        self.settings, self.seed = settings, seed

    def _changed(self, data: dict[Hashable, Any]) -> dict[Hashable, Any]:
        (key,) = self.keys
        mask = extract_brain(_scan(data, key), self.settings, seed=self.seed).mask
        return data | {self.mask_key: _like(data[key], mask)}


class CorrectBiasFieldd(_Step):
    """Divide scans by their bias field; see `correct_bias_field`.

    Parameters
    ----------
    keys : str or sequence of str
    mask_key : str
    settings : BiasFieldSettings
    allow_missing_keys : bool
    """

    def __init__(
        self,
        keys: KeysCollection,
        mask_key: str = "brain_mask",
        settings: BiasFieldSettings = _DEFAULTS.bias_field,
        allow_missing_keys: bool = False,
    ):
        super().__init__(keys, mask_key, allow_missing_keys)
        self.settings = settings

    def _changed(self, data: dict[Hashable, Any]) -> dict[Hashable, Any]:
        for key in self.key_iterator(data):
            scan = _scan(data, key)
            data[key] = _like(data[key], correct_bias_field(scan, self._mask_on(data, scan.grid), self.settings))
        return data


class AlignToT1wd(_Step):
    """Align other images of a session with its T1w, without interpolation: only their affines change.

    See `align_to_t1w`.

    Parameters
    ----------
    keys : str or sequence of str
    t1w_key, mask_key : str
    seed : int
    allow_missing_keys : bool
    """

    def __init__(
        self,
        keys: KeysCollection,
        t1w_key: str = "t1w",
        mask_key: str = "brain_mask",
        *,
        seed: int = 1,
        allow_missing_keys: bool = False,
    ):
        super().__init__(keys, mask_key, allow_missing_keys)
        self.t1w_key, self.seed = t1w_key, seed

    def _changed(self, data: dict[Hashable, Any]) -> dict[Hashable, Any]:
        t1w = _scan(data, self.t1w_key)
        brain = self._mask_on(data, t1w.grid)
        for key in self.key_iterator(data):
            scan = _scan(data, key)
            alignment = align_to_t1w(scan, t1w, brain, seed=self.seed)
            affine = np.linalg.inv(ras_affine(alignment.transform)) @ scan.affine
            data[key] = _like(data[key], Volume(scan.voxels, Grid(scan.grid.size_vox, affine)))
        return data


class RegisterToTemplated(_Step, InvertibleTransform):
    """Register a T1w to the MNI152 template, and resample images and brain mask to the template's grid.

    Each is interpolated once; see `register_to_template` and `TemplateTransform.scan_to_template`. Brain outside the
    field of view of an image is taken out of the mask. The inverse brings volumes of the template to the native grid,
    by linear interpolation (or the nearest voxel, with `Invertd` and ``nearest_interp=True``).

    Parameters
    ----------
    keys : str or sequence of str
        The images to resample, in the space of the T1w.
    t1w_key, mask_key : str
    spacing_mm : float
        Of the template's grid.
    settings : RegistrationSettings
    seed : int
    allow_missing_keys : bool
    """

    def __init__(
        self,
        keys: KeysCollection,
        t1w_key: str = "t1w",
        mask_key: str = "brain_mask",
        spacing_mm: float = _DEFAULTS.spacing_mm,
        settings: RegistrationSettings = _DEFAULTS.registration,
        *,
        seed: int = 1,
        allow_missing_keys: bool = False,
    ):
        super().__init__(keys, mask_key, allow_missing_keys)
        self.t1w_key, self.spacing_mm, self.settings, self.seed = t1w_key, spacing_mm, settings, seed

    def _changed(self, data: dict[Hashable, Any]) -> dict[Hashable, Any]:
        t1w, working_template = _scan(data, self.t1w_key), load_template(self.settings.working_spacing_mm)
        brain = self._mask_on(data, t1w.grid)
        transform = register_to_template(t1w, brain, working_template, self.settings, seed=self.seed)
        grid = load_template(self.spacing_mm).grid
        mask = transform.to_template(brain, grid, interpolation="linear")
        warped: dict[Hashable, Volume] = {}
        for key in self.key_iterator(data):
            scan = _scan(data, key)
            warped[key], in_view = transform.scan_to_template(scan, self._mask_on(data, scan.grid), grid)
            mask = mask.with_voxels(mask.voxels & in_view.voxels)
        for key, volume in {**warped, self.mask_key: mask}.items():
            native = Volume.from_metatensor(data[key]).grid
            data[key] = _like(data[key], volume)
            # Invertd sets the key "mode", as MONAI's spatial transforms have it.
            self.push_transform(data[key], extra_info={"mode": "linear", "transform": transform, "native_grid": native})
        return data

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Resample volumes on the template's grid to the native grid."""
        data = dict(data)
        for key in {*self.key_iterator(data), *({self.mask_key} & data.keys())}:
            info = self.get_most_recent_transform(data[key])[TraceKeys.EXTRA_INFO]
            transform: TemplateTransform = info["transform"]
            volume = Volume.from_metatensor(data[key])
            native = transform.to_native(volume, info["native_grid"], interpolation=info["mode"])
            data[key] = _like(data[key], native)
            self.pop_transform(data[key])  # from the copy, so that the input can be inverted again
        return data


class ScaleBrainIntensityd(_Step):
    """Scale the brain's intensities to [0, 1] by two percentiles, and set the rest to 0; see `normalise`.

    Parameters
    ----------
    keys : str or sequence of str
    mask_key : str
        The brain, on the grid of the images.
    allow_missing_keys : bool
    """

    def __init__(self, keys: KeysCollection, mask_key: str = "brain_mask", allow_missing_keys: bool = False):
        super().__init__(keys, mask_key, allow_missing_keys)

    def _changed(self, data: dict[Hashable, Any]) -> dict[Hashable, Any]:
        for key in self.key_iterator(data):
            image = _scan(data, key)
            data[key] = _like(data[key], normalise(image, self._mask_on(data, image.grid)))
        return data


def _scan(data: Mapping[Hashable, Any], key: Hashable) -> Volume:
    """Return the scan of a key, without the few negative values that an earlier interpolation may have left.

    Raises
    ------
    UserError
        It has many negative values, or see `_read`.
    """
    scan = _read(data, key)
    require_intensities(scan, str(key))
    return scan.with_voxels(np.maximum(scan.voxels, 0))


def _read(data: Mapping[Hashable, Any], key: Hashable) -> Volume:
    """Return the volume of a key.

    Raises
    ------
    UserError
        It does not have one channel, or its axes are not RAS.
    """
    volume = Volume.from_metatensor(data[key])
    if volume.grid.orientation != "RAS":
        raise UserError(
            f"{key}: has the orientation {volume.grid.orientation}, expected RAS. Apply monai.transforms.Orientationd "
            'with axcodes="RAS" first.'
        )
    return volume


def _like(image: MetaTensor, volume: Volume) -> MetaTensor:
    """Give a volume the metadata and the history of the image that it was computed from."""
    new = volume.to_metatensor()
    new.meta = {**image.meta, **new.meta}
    new.applied_operations = list(image.applied_operations)
    return new
