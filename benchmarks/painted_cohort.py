"""Lesions painted into healthy heads in their own space, before any preprocessing: exact truth for the benchmarks.

Shapes are those of real lesions. They come from masks in template space and are brought to a head by an affine; what
a lesion does to the tissue is an `Effect`.
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
    """Sorting names by this draws them, the same way on every machine."""
    return hashlib.sha256(f"{seed}/{name}".encode()).hexdigest()


# -- heads -------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, eq=False)
class Head:
    """A healthy head in its own space.

    Attributes
    ----------
    scan : Volume
    brain_mask : Volume of bool
    transform : TemplateTransform
        An affine.
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
        """White minus grey matter, in the units of the scan."""
        return white_grey_contrast(self.scan, self.brain_mask)

    @cached_property
    def tissue(self) -> np.ndarray:
        """Where lesions can lie, (X, Y, Z) bool: what is as dark as CSF already cannot be darkened visibly."""
        inside = self.brain_mask.voxels
        return inside & (self.scan.voxels > np.percentile(self.scan.voxels[inside], 25))

    def in_tissue(self, core: np.ndarray) -> bool:
        """Whether nearly all of a lesion lies where lesions can."""
        return bool(self.tissue[core].mean() >= 0.9)


# -- shapes ------------------------------------------------------------------------------------------------------------
def lesion_shapes(folder: Path) -> list[Volume]:
    """Small connected lesions of the real masks below a folder, bool, in template space."""
    shapes = []
    for path in sorted(folder.rglob("*.nii.gz")):
        shapes += lesion_components(read_mask(path), smallest_ml=SMALLEST_ML, largest_ml=LARGEST_ML)
    return shapes


def random_ml(random: np.random.Generator, smallest_ml: float = SMALLEST_ML) -> float:
    """Sizes spread evenly on a log scale."""
    return float(np.exp(random.uniform(np.log(smallest_ml), np.log(LARGEST_ML))))


def nearest_in_size(shapes: Sequence[Volume], wanted_ml: float) -> Iterator[Volume]:
    """All shapes, the one that comes nearest to a size first."""
    sizes_ml = np.array([shape.voxels.sum() * shape.grid.voxel_volume_mm3 / 1000 for shape in shapes])
    for choice in np.argsort(np.abs(np.log(sizes_ml / wanted_ml)), kind="stable"):
        yield shapes[choice]


def moved_to(shape: Volume, place_mm: np.ndarray) -> Volume:
    """The same shape with its centre of mass elsewhere (RAS+ mm)."""
    affine = shape.affine.copy()
    affine[:3, 3] += place_mm - affine[:3] @ [*ndimage.center_of_mass(shape.voxels), 1]
    return Volume(shape.voxels, Grid(shape.grid.size_vox, affine))


# -- painting ----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, eq=False)
class Canvas:
    """A head with lesions in it.

    Attributes
    ----------
    head : Head
        As it was.
    image : Volume
    labels : ndarray of uint8, (X, Y, Z)
        0 where it is healthy, else what the lesion was called when it was painted.
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
        """Paint one lesion: the first of some shapes that suits this head.

        Parameters
        ----------
        shapes : iterable of Volume
            bool, in template space.
        effect : Effect
        suits : callable
            Whether the voxels of a shape, (X, Y, Z) bool, lie where such a lesion may.
        label : int
        apart_vox : int
            How far from all other lesions.

        Returns
        -------
        Canvas or None
            None where no shape suits.
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
    """Write scan and lesion mask of a painted head; the patient that it is now."""
    patient = painted_record(folder, record, site=site)
    write_volume(patient.images["t1w"], canvas.image)
    if patient.lesion_mask is not None:
        write_volume(patient.lesion_mask, canvas.truth)
    return patient


def painted_record(folder: Path, record: SubjectRecord, *, site: str) -> SubjectRecord:
    """What a head is called once it is painted, and where its files lie."""
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
