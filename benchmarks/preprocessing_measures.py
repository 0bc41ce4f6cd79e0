"""Measures of `benchmarks/preprocessing.py`: one function per measure, applied to one head with default settings.

Every function takes the data folder, the benchmark folder and the name of a head, and returns numbers for JSON.
"""

import resource
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from scipy import ndimage
from scipy.spatial.transform import Rotation
from voxout.data_manifests.cohort.manifest import read_manifest
from voxout.data_manifests.cohort.output_paths import OutputFolder
from voxout.data_manifests.cohort.subject import SubjectRecord
from voxout.data_manifests.errors import UserError
from voxout.data_manifests.images.volume import Grid, Volume, read_mask, read_volume
from voxout.data_manifests.synthetic.painted_lesions import lesion_components
from voxout.preprocessing.brain_extraction.extract import extract_brain
from voxout.preprocessing.prepare_subject import prepare_subject
from voxout.preprocessing.quality.verdict import Quality
from voxout.preprocessing.registration.resampling import canonical, itk_affine, resample
from voxout.preprocessing.registration.template import load_template
from voxout.preprocessing.registration.template_transform import TemplateTransform
from voxout.preprocessing.settings import PreprocessingSettings

Numbers = Mapping[str, Any]
Measure = Callable[[Path, Path, str], Numbers]

SETTINGS = PreprocessingSettings()
SEED = 1
LESIONS_A_HEAD = 4
SMALLEST_ML, LARGEST_ML = 0.5, 50.0


def heads(data: Path, cohort: str) -> dict[str, SubjectRecord]:
    """Records of the scans without masks."""
    records = read_manifest(data / cohort)
    return {r.key: replace(r, group="control", brain_mask=None, lesion_mask=None) for r in records}


def reference_mask(data: Path, cohort: str, key: str) -> Volume:
    return read_mask(data / cohort / "derivatives/reference" / key / "anat" / f"{key}_desc-brain_mask.nii.gz")


def output_folder(out: Path, cohort: str) -> OutputFolder:
    return OutputFolder(out / "heads" / cohort)


# -- all steps ---------------------------------------------------------------------------------------------------------


def prepared(data: Path, out: Path, name: str) -> Numbers:
    """Prepare a head as `voxout prepare` does; call it in a separate process, so that peak memory is per head."""
    import ants  # noqa: F401 (loaded once per process, not part of the time per head)
    import torch  # noqa: F401

    cohort, key = name.rsplit("_", 1)
    modalities = ("t1w", "flair") if cohort == "wmh_unaligned" else ("t1w",)
    settings = SETTINGS.model_copy(update={"modalities": modalities})
    began = time.process_time()
    try:
        quality = prepare_subject(heads(data, cohort)[key], settings, output_folder(out, cohort), seed=SEED)
    except UserError as error:
        return {"failed": str(error)}
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "cpu_s": time.process_time() - began,
        "cpu_with_imports_s": usage.ru_utime + usage.ru_stime,
        "peak_gb": usage.ru_maxrss / 2**20,
        "method": quality.brain_method,
        "verdict": quality.verdict,
        "reasons": list(quality.reasons),
    }


def brain_of_prepared(data: Path, out: Path, name: str) -> Numbers:
    cohort, key = name.rsplit("_", 1)
    folder, head = output_folder(out, cohort), heads(data, cohort)[key]
    mask, reference = read_mask(folder.native_brain_mask(head)), reference_mask(data, cohort, key)
    method = Quality.load(folder.quality(head)).brain_method
    return {"method": method, **agreement(mask, reference)}


def agreement(mask: Volume, reference: Volume) -> Numbers:
    """Dice, and distance in mm of the mask surface to the reference surface, outside (+) or inside (-)."""
    found, truth = mask.voxels, reference.voxels
    spacing = mask.grid.spacing_mm
    surface = found & ~np.asarray(ndimage.binary_erosion(found))
    outside = np.asarray(ndimage.distance_transform_edt(~truth, sampling=spacing))
    inside = np.asarray(ndimage.distance_transform_edt(truth, sampling=spacing))
    # Both distances of a border voxel are too long by half a voxel.
    distance = np.where(truth, -(inside - spacing.min()), outside)[surface]
    return {
        "dice": dice(found, truth),
        "offset_mm": float(distance.mean()),
        "apart_95_mm": float(np.percentile(np.abs(distance), 95)),
    }


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return float(2 * (one & other).sum() / max(one.sum() + other.sum(), 1))


# -- brain extraction under disturbance --------------------------------------------------------------------------------


def disturbances(scan: Volume, mask: Volume) -> Iterator[tuple[str, Volume, Volume]]:
    """Yield the scan and its reference mask under each disturbance."""
    yield "as it is", scan, mask
    for axis in "xyz":
        yield f"turned 20 degrees about {axis}", *_rotated(scan, mask, Rotation.from_euler(axis, 20, degrees=True))
    for orientation in ("LPI", "SAR"):
        yield f"stored {orientation}", _stored_as(scan, orientation), _stored_as(mask, orientation)
    yield "bias and noise", _shaded(scan, mask), mask
    yield "5 mm slices", *_thick_slices(canonical(scan), canonical(mask))
    for factor in (0.01, 100.0):
        yield f"intensities x {factor:g}", scan.with_voxels(scan.voxels * np.float32(factor)), mask


def brain_of_disturbed(data: Path, out: Path, name: str) -> Numbers:
    """Agreement of the brain mask with the reference under every disturbance."""
    cohort, key = name.rsplit("_", 1)
    scan, reference = read_volume(heads(data, cohort)[key].images["t1w"]), reference_mask(data, cohort, key)
    found = {}
    for kind, disturbed, truth in disturbances(scan, reference):
        brain = extract_brain(canonical(disturbed), SETTINGS.brain_extraction, seed=SEED)
        found[kind] = {
            "method": brain.method,
            "notes": list(brain.notes),
            **agreement(brain.mask, canonical(truth)),
        }
    return found


def _rotated(scan: Volume, mask: Volume, rotation: Rotation) -> tuple[Volume, Volume]:
    """Rotate the head about the centre of its brain, on a grid that contains all of it."""
    middle = mask.affine[:3, :3] @ ndimage.center_of_mass(mask.voxels) + mask.affine[:3, 3]
    turn = about(middle, rotation, np.zeros(3))
    room = np.ceil(0.15 * np.array(scan.grid.size_vox)).astype(int)
    x, y, z = (int(n) for n in np.array(scan.grid.size_vox) + 2 * room)
    affine = scan.affine.copy()
    affine[:3, 3] -= affine[:3, :3] @ room
    back = itk_affine(np.linalg.inv(turn))
    grid = Grid((x, y, z), affine)
    return resample(scan, grid, back, "bspline"), resample(mask, grid, back, "linear")


def _stored_as(volume: Volume, orientation: str) -> Volume:
    change = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(volume.affine), nib.orientations.axcodes2ornt(tuple(orientation))
    )
    voxels = nib.orientations.apply_orientation(volume.voxels, change)
    affine = volume.affine @ nib.orientations.inv_ornt_aff(change, volume.grid.size_vox)
    return Volume(np.ascontiguousarray(voxels), Grid(voxels.shape, affine))


def _shaded(scan: Volume, mask: Volume) -> Volume:
    """Add a bias field of -30 to +40 % along the first axis and across, and Rician noise of 5 % of bright tissue."""
    first, second, third = np.meshgrid(*(np.linspace(-1, 1, n) for n in scan.grid.size_vox), indexing="ij", sparse=True)
    field = np.exp(0.35 * first + 0.2 * np.cos(2 * second) * third)
    deviation = 0.05 * np.percentile(scan.voxels[mask.voxels], 90)
    noise = np.random.default_rng(0).normal(0, deviation, (2, *scan.voxels.shape))
    return scan.with_voxels(np.hypot(scan.voxels * field + noise[0], noise[1]).astype(np.float32))


def _thick_slices(scan: Volume, mask: Volume) -> tuple[Volume, Volume]:
    step = 5.0 / scan.grid.spacing_mm[2]
    x, y, z = scan.grid.size_vox
    grid = Grid((x, y, int((z - 1) / step) + 1), scan.affine @ np.diag([1, 1, step, 1]))
    unmoved = sitk.Transform(3, sitk.sitkIdentity)
    # Blurred only along the slice normal; the in-plane resolution is kept.
    sigma = [0, 0, np.sqrt(step**2 - 1) / 2.355]
    thick = [ndimage.gaussian_filter(v.voxels.astype(np.float32), sigma) for v in (scan, mask)]
    image, inside = (resample(scan.with_voxels(v), grid, unmoved, "linear") for v in thick)
    return image, Volume(inside.voxels >= 0.5, grid)


# -- rigid moves -------------------------------------------------------------------------------------------------------


def about(middle: np.ndarray, rotation: Rotation, shift: np.ndarray) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = rotation.as_matrix()
    affine[:3, 3] = middle + shift - affine[:3, :3] @ middle
    return affine


def moved(points: np.ndarray, affine: np.ndarray) -> np.ndarray:
    return points @ affine[:3, :3].T + affine[:3, 3]


# -- template ----------------------------------------------------------------------------------------------------------


def on_template(data: Path, out: Path, name: str) -> Numbers:
    """Overlaps before and after the warp, and round trips of a map and of lesions to the template and back."""
    cohort, key = name.rsplit("_", 1)
    folder, head = output_folder(out, cohort), heads(data, cohort)[key]
    transform = TemplateTransform.load(folder.transform_folder(head))
    mask = canonical(read_mask(folder.native_brain_mask(head)))
    quality = Quality.load(folder.quality(head))
    template = load_template(SETTINGS.registration.working_spacing_mm)
    affine_alone = transform.affine_only().to_template(mask, template.grid, interpolation="linear")
    return {
        "brain_overlap": quality.brain_overlap,
        "brain_overlap_affine": dice(affine_alone.voxels, template.brain_mask.voxels),
        "white_overlap": quality.white_matter_overlap,
        "white_overlap_affine": quality.white_matter_overlap_before,
        "jacobian_smallest": quality.jacobian_smallest,
        "map_correlation": _map_there_and_back(transform, mask, key),
        "lesions": _lesions_there_and_back(data, transform, mask, key),
    }


def _map_there_and_back(transform: TemplateTransform, mask: Volume, key: str) -> float:
    random = np.random.default_rng(sum(key.encode())).standard_normal(mask.grid.size_vox)
    smooth = mask.with_voxels(ndimage.gaussian_filter(random, 8.0 / mask.grid.spacing_mm).astype(np.float32))
    there = transform.to_template(smooth, load_template(SETTINGS.spacing_mm).grid, interpolation="linear")
    back = transform.to_native(there, mask.grid, interpolation="linear")
    return float(np.corrcoef(back.voxels[mask.voxels], smooth.voxels[mask.voxels])[0, 1])


def _lesions_there_and_back(data: Path, transform: TemplateTransform, mask: Volume, key: str) -> list[dict[str, float]]:
    """Transform real lesions to the head by the affine only, then warp their masks to the template and back."""
    shapes = lesion_shapes(data / "lesion_masks")
    sizes_ml = np.array([shape.voxels.sum() * shape.grid.voxel_volume_mm3 / 1000 for shape in shapes])
    random = np.random.default_rng(sum(key.encode()))
    grid = load_template(SETTINGS.spacing_mm).grid
    found = []
    while len(found) < LESIONS_A_HEAD:
        wanted_ml = np.exp(random.uniform(np.log(SMALLEST_ML), np.log(LARGEST_ML)))
        choice = int(np.abs(np.log(sizes_ml / wanted_ml)).argmin())
        shape, sizes_ml[choice] = shapes[choice], np.inf  # each shape is used once
        lesion = transform.affine_only().to_native(shape, mask.grid, interpolation="linear")
        ml = lesion.voxels.sum() * lesion.grid.voxel_volume_mm3 / 1000
        if ml < SMALLEST_ML or (lesion.voxels & ~mask.voxels).sum() > 0.2 * lesion.voxels.sum():
            continue
        there = transform.to_template(lesion, grid, interpolation="volume")
        back = transform.to_native(there, mask.grid, interpolation="volume")
        found.append(
            {
                "ml": float(ml),
                "ml_on_template": float(there.voxels.sum() * grid.voxel_volume_mm3 / 1000),
                "kept": float(back.voxels.sum() / lesion.voxels.sum()),
                "dice": dice(back.voxels, lesion.voxels),
            }
        )
    return found


def lesion_shapes(folder: Path) -> list[Volume]:
    """Connected components of some of the stroke and MS lesion masks, in template space."""
    shapes = []
    for path in [*sorted((folder / "stroke").rglob("*.nii.gz"))[::8], *sorted((folder / "ms").rglob("*.nii.gz"))[::6]]:
        shapes += lesion_components(read_mask(path), smallest_ml=SMALLEST_ML, largest_ml=LARGEST_ML)
    return shapes
