"""Synthetic lesions in healthy scans, added in native space before preprocessing, with exact ground truth.

Shapes are those of real lesions: masks in template space, transformed to native space by an affine. An `Effect` defines
the change of the tissue.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from scipy import ndimage
from voxout.data_manifests.cohort.subject import SubjectRecord
from voxout.data_manifests.images.grid import Grid
from voxout.data_manifests.images.volume import Volume, read_mask, read_volume, write_volume
from voxout.data_manifests.synthetic.lesion_effects import Effect
from voxout.data_manifests.synthetic.painted_lesions import lesion_components, paint_lesion, white_grey_contrast
from voxout.preprocessing.registration.template_transform import TemplateTransform

SMALLEST_ML, LARGEST_ML = 0.05, 3.0
SOFTNESS_MM = 1.0


def drawn(seed: int, name: str) -> str:
    """Sort key that gives a random order of names, equal on all machines."""
    return hashlib.sha256(f"{seed}/{name}".encode()).hexdigest()


# -- heads -------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, eq=False)
class Head:
    """Healthy scan in native space.

    Attributes
    ----------
    scan : Volume
    brain_mask : Volume of bool
    transform : TemplateTransform
        Affine transform to the template.
    """

    scan: Volume
    brain_mask: Volume
    transform: TemplateTransform

    @classmethod
    def read(cls, record: SubjectRecord, brain_mask: Path, *, seed: int) -> "Head":
        from voxout.preprocessing.registration.register import register_to_template
        from voxout.preprocessing.registration.template import load_template
        from voxout.preprocessing.settings import RegistrationSettings

        scan, mask = read_volume(record.images["t1w"]), read_mask(brain_mask)
        settings = RegistrationSettings(transform="affine")
        return cls(scan, mask, register_to_template(scan, mask, load_template(2.0), settings, seed=seed))

    @cached_property
    def contrast(self) -> float:
        """White minus grey matter intensity, in the units of the scan."""
        return white_grey_contrast(self.scan, self.brain_mask)

    @cached_property
    def tissue(self) -> np.ndarray:
        """Tissue for lesions, (X, Y, Z) bool; excludes voxels as dark as CSF, which cannot be darkened visibly."""
        inside = self.brain_mask.voxels
        return inside & (self.scan.voxels > np.percentile(self.scan.voxels[inside], 25))

    def in_tissue(self, core: np.ndarray) -> bool:
        """Whether at least 90 % of a lesion is inside `tissue`."""
        return bool(self.tissue[core].mean() >= 0.9)


# -- shapes ------------------------------------------------------------------------------------------------------------
def lesion_shapes(folder: Path) -> list[Volume]:
    """Small connected components of the real lesion masks in a folder, bool, in template space."""
    shapes = []
    for path in sorted(folder.rglob("*.nii.gz")):
        shapes += lesion_components(read_mask(path), smallest_ml=SMALLEST_ML, largest_ml=LARGEST_ML)
    return shapes


def random_ml(random: np.random.Generator, smallest_ml: float = SMALLEST_ML) -> float:
    """Draw a size in ml, log-uniformly."""
    return float(np.exp(random.uniform(np.log(smallest_ml), np.log(LARGEST_ML))))


def nearest_in_size(shapes: Sequence[Volume], wanted_ml: float) -> Iterator[Volume]:
    """Yield all shapes, those closest in size first."""
    sizes_ml = np.array([shape.voxels.sum() * shape.grid.voxel_volume_mm3 / 1000 for shape in shapes])
    for choice in np.argsort(np.abs(np.log(sizes_ml / wanted_ml)), kind="stable"):
        yield shapes[choice]


def moved_to(shape: Volume, place_mm: np.ndarray) -> Volume:
    """Move the centre of mass of a shape to a position (RAS+ mm)."""
    affine = shape.affine.copy()
    affine[:3, 3] += place_mm - affine[:3] @ [*ndimage.center_of_mass(shape.voxels), 1]
    return Volume(shape.voxels, Grid(shape.grid.size_vox, affine))


# -- painting ----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, eq=False)
class Canvas:
    """Scan with painted lesions.

    Attributes
    ----------
    head : Head
        The original scan.
    image : Volume
    labels : ndarray of uint8, (X, Y, Z)
        0 in healthy tissue, else the label given to the lesion.
    """

    head: Head
    image: Volume
    labels: np.ndarray

    @classmethod
    def blank(cls, head: Head) -> "Canvas":
        return cls(head, head.scan, np.zeros(head.scan.grid.size_vox, dtype=np.uint8))

    @property
    def truth(self) -> Volume:
        return self.image.with_voxels(self.labels > 0)

    def with_lesion(
        self,
        shapes: Iterable[Volume],
        effect: Effect,
        suits: Callable[[np.ndarray], bool],
        *,
        label: int = 1,
        apart_vox: int = 2,
    ) -> "Canvas | None":
        """Paint one lesion, of the first shape that fits.

        Parameters
        ----------
        shapes : iterable of Volume
            bool, in template space.
        effect : Effect
        suits : callable
            Takes the voxels of a shape, (X, Y, Z) bool, and returns whether the lesion may be there.
        label : int
        apart_vox : int
            Minimum distance to other lesions in voxels.

        Returns
        -------
        Canvas or None
            None if no shape fits.
        """
        taken = self.labels > 0
        if taken.any():
            taken = ndimage.binary_dilation(taken, iterations=apart_vox)
        for shape in shapes:
            soft = shape.with_voxels(shape.voxels.astype(np.float32))
            soft = self.head.transform.to_native(soft, self.image.grid, interpolation="linear")
            core = soft.voxels >= 0.5
            if not core.any() or not suits(core) or (soft.voxels > 0)[taken].any():
                continue
            painted = paint_lesion(self.image, soft, effect, softness_mm=SOFTNESS_MM)
            pieces = lesion_components(painted.lesion_mask, smallest_ml=0, largest_ml=np.inf)
            in_limits = lesion_components(painted.lesion_mask, smallest_ml=SMALLEST_ML, largest_ml=LARGEST_ML)
            if len(pieces) == len(in_limits) == 1:
                labels = np.where(painted.lesion_mask.voxels, np.uint8(label), self.labels)
                return replace(self, image=painted.image, labels=labels)
        return None


def write_painted(folder: Path, record: SubjectRecord, canvas: Canvas, *, site: str) -> SubjectRecord:
    """Write scan and lesion mask of a painted head; return its record as a patient."""
    patient = painted_record(folder, record, site=site)
    write_volume(patient.images["t1w"], canvas.image)
    if patient.lesion_mask is not None:
        write_volume(patient.lesion_mask, canvas.truth)
    return patient


def painted_record(folder: Path, record: SubjectRecord, *, site: str) -> SubjectRecord:
    """Record of a painted head as a patient, with the paths of its files."""
    name = f"{record.subject_id}painted"
    anat = folder / f"sub-{name}" / "anat"
    return SubjectRecord(
        subject_id=name,
        group="patient",
        images={"t1w": anat / f"sub-{name}_T1w.nii.gz"},
        lesion_mask=anat / f"sub-{name}_label-lesion_mask.nii.gz",
        site=site,
        age=record.age,
        sex=record.sex,
    )
