"""Check of all input files of a cohort before long computations start.

Every header and every array is read once. A problem of one subject excludes that subject; a problem of the cohort
stops the run.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from skimage.filters import threshold_otsu

from ..errors import UserError, counted, merged, private, some_of
from ..images.volume import Grid, Volume, read_mask, read_volume
from ..terms import BIDS_SUFFIX, Modality
from .subject import Manifest, SubjectRecord

LEAST_INSIDE, MOST_OF_HEAD = 0.5, 0.5
ENOUGH_CONTROLS = 20
EMPTY_LESION_MASK = (
    "the lesion mask is empty, expected a lesion. Correct it, or leave column lesion_mask empty: the map is then "
    "not evaluated."
)

ScanCheck = Callable[[SubjectRecord, Mapping[Modality, Volume], Volume | None], Sequence[str]]
"""Additional check of a subject's scans and brain mask: one message per problem, without the subject's key."""


@dataclass(frozen=True)
class Problem:
    """Problem or warning as a message for the user.

    Attributes
    ----------
    subject_key : str
        ``""`` if it concerns the cohort.
    sentence : str
        Complete message, including the subject key.
    """

    subject_key: str
    sentence: str


@dataclass(frozen=True)
class CheckResult:
    """Result of `check_manifest`.

    Attributes
    ----------
    problems : tuple of Problem
        Errors; subjects with a problem are excluded.
    warnings : tuple of Problem
        Warnings; they exclude no subject.
    good : tuple of str
        Keys of the subjects without problems, in the order of the manifest.
    """

    problems: tuple[Problem, ...]
    warnings: tuple[Problem, ...]
    good: tuple[str, ...]

    @property
    def sentences(self) -> tuple[str, ...]:
        """Messages of the problems. Equal messages of several subjects are merged into one that lists the subjects."""
        keys = {*self.good, *(problem.subject_key for problem in self.problems)} - {""}
        return merged(((problem.subject_key, problem.sentence) for problem in self.problems), len(keys))


def check_manifest(
    manifest: Manifest,
    *,
    modalities: Sequence[Modality],
    judge: ScanCheck | None = None,
    fewest_controls: int = 4,
    progress: Callable[[int, int, str], None] | None = None,
) -> CheckResult:
    """Read and check all files of a manifest.

    Parameters
    ----------
    manifest : Manifest
    modalities : sequence of Modality
        The images that every subject must have.
    judge : callable, optional
        Called as ``judge(record, scans, brain_mask)`` with the images that could be read; returns further problems.
    fewest_controls : int
        Required number of controls without problems; 0 if a trained model is applied.
    progress : callable, optional
        Called as ``progress(done, total, key)`` after each subject.

    Returns
    -------
    CheckResult
        Errors caused by the user are returned as problems and not raised.
    """
    problems: list[Problem] = []
    warnings: list[Problem] = []
    same: dict[bytes, list[tuple[SubjectRecord, str]]] = defaultdict(list)
    for number, record in enumerate(manifest, start=1):
        findings = _Findings(record)
        _check_subject(record, modalities, judge, findings, same)
        problems += findings.problems
        warnings += findings.warnings
        if progress:
            progress(number, len(manifest), record.key)
    for scans in same.values():
        _check_same_voxels(scans, problems, warnings)
    broken = {problem.subject_key for problem in problems}
    good = tuple(record.key for record in manifest if record.key not in broken)
    controls = [record for record in manifest.controls if record.key in good]
    number = counted(len(controls), "control")
    if len(controls) < fewest_controls:
        problems.append(
            Problem(
                "",
                f"{number} can be used, expected at least {fewest_controls} ({ENOUGH_CONTROLS} or "
                "more recommended). Add healthy scans, or fix the listed problems.",
            )
        )
    elif fewest_controls > 0 and len(controls) < ENOUGH_CONTROLS:
        warnings.append(Problem("", f"only {number}: maps are more stable with {ENOUGH_CONTROLS} or more."))
    unmasked = [record.key for record in manifest.patients if record.lesion_mask is None]
    # A model is usually applied to find lesions that nobody has outlined.
    if unmasked and (fewest_controls > 0 or len(unmasked) < len(manifest.patients)):
        has, mapped = ("has", "it is") if len(unmasked) == 1 else ("have", "they are")
        found = f"{counted(len(unmasked), 'patient')} {has} no lesion mask"
        warnings.append(Problem("", f"{found}: {mapped} mapped, but the map is not evaluated."))
    return CheckResult(tuple(problems), tuple(warnings), good)


class _Findings:
    """Collected problems and warnings of one subject."""

    def __init__(self, record: SubjectRecord):
        self.key = record.key
        self.problems: list[Problem] = []
        self.warnings: list[Problem] = []

    def problem(self, sentence: str) -> None:
        self.problems.append(Problem(self.key, f"{self.key}: {sentence}"))

    def warning(self, sentence: str) -> None:
        self.warnings.append(Problem(self.key, f"{self.key}: {sentence}"))

    def read(self, read: Callable[..., Volume], path) -> Volume | None:
        try:
            return read(path)
        except UserError as error:
            self.problem(" ".join(error.problems))
            return None


def missing_images(record: SubjectRecord, modalities: Sequence[Modality]) -> list[str]:
    """Return one message for each required image that a subject lacks."""
    return [
        f"has no {BIDS_SUFFIX[modality]}, expected one (required by preprocessing.modalities). Add it in column "
        f"{modality}, or remove {modality} from the settings."
        for modality in modalities
        if modality not in record.images
    ]


def on_another_grid(mask: Volume, grid: Grid, name: str, of: Modality) -> str | None:
    """Return a message if a mask does not have the grid of its scan, else None."""
    if mask.grid.same_as(grid):
        return None
    scan, distance = BIDS_SUFFIX[of], mask.grid.apart_in_words(grid)
    advice = " If it was drawn on another image, give that image in column mask_of." if name == "lesion mask" else ""
    return (
        f"{name} and {scan} have different grids ({mask.grid} and {grid}{distance}), expected the same grid. "
        f"Resample the mask to the {scan} with nearest-neighbour interpolation.{advice}"
    )


def _check_subject(
    record: SubjectRecord,
    modalities: Sequence[Modality],
    judge: ScanCheck | None,
    findings: _Findings,
    same: dict[bytes, list[tuple[SubjectRecord, str]]],
) -> None:
    for sentence in missing_images(record, modalities):
        findings.problem(sentence)
    read: dict[Modality, Volume] = {}
    for modality, path in record.images.items():
        volume = findings.read(read_volume, path)
        if volume is None:
            continue
        read[modality] = volume
        if volume.grid.qform_code == volume.grid.sform_code == 0:
            findings.warning(
                f"{private(path.name)} has no orientation (the form codes, or goodRASFlag of MGZ, are 0): "
                f"{volume.grid} are assumed. Check left and right and the voxel size in its map."
            )
        if volume.grid.qform is not None:
            findings.warning(
                f"the qform of {private(path.name)} is rotated or shifted relative to its sform: the sform is used."
            )
        if volume.grid.unit is not None:
            findings.warning(
                f"the header of {private(path.name)} gives the unit {volume.grid.unit}, but its values are "
                "millimetres: millimetres are assumed."
            )
        same[hashlib.blake2b(volume.voxels.tobytes()).digest()].append((record, private(path.name)))
    brain = findings.read(read_mask, record.brain_mask) if record.brain_mask else None
    fits = brain is not None and _has_grid_of(brain, read.get("t1w"), "brain mask", "t1w", findings)
    for sentence in judge(record, read, brain if fits else None) if judge else ():
        findings.problem(sentence)
    lesion = findings.read(read_mask, record.lesion_mask) if record.lesion_mask else None
    if lesion is not None:
        _check_lesion_mask(record, lesion, brain, read.get(record.mask_of), findings)


def _check_same_voxels(
    scans: Sequence[tuple[SubjectRecord, str]], problems: list[Problem], warnings: list[Problem]
) -> None:
    """Add a problem for each subject whose scan is also one of the other group; within a group, add warnings."""
    first, _ = scans[0]
    for record, name in scans:
        others = list(dict.fromkeys(other.key for other, _ in scans if other.group != record.group))
        if others:
            problems.append(
                Problem(
                    record.key,
                    f"{record.key}: {name} of a {record.group} has the same voxels as a scan of {some_of(others)} in "
                    "the other group, expected each scan in one group. Correct the file or the group.",
                )
            )
        elif record.key != first.key:
            sentence = f"{name} has the same voxels as a scan of {first.key}. Keep one of the two."
            warnings.append(Problem(record.key, f"{record.key}: {sentence}"))


def _has_grid_of(mask: Volume, scan: Volume | None, name: str, of: Modality, findings: _Findings) -> bool:
    sentence = None if scan is None else on_another_grid(mask, scan.grid, name, of)
    if sentence is None:
        return True
    findings.problem(sentence)
    return False


def _check_lesion_mask(
    record: SubjectRecord, lesion: Volume, brain: Volume | None, scan: Volume | None, findings: _Findings
) -> None:
    if not _has_grid_of(lesion, scan, "lesion mask", record.mask_of, findings):
        return
    if not lesion.voxels.any():
        if record.group == "patient":
            findings.problem(EMPTY_LESION_MASK)
        return
    if record.group == "control":
        findings.problem(
            "is a control with a non-empty lesion mask, expected healthy controls. Change its group to patient, or "
            "leave column lesion_mask empty."
        )
    if scan is None:
        return
    head = _head(scan)
    if brain is not None and brain.grid.same_as(scan.grid):
        head |= brain.voxels
    inside = head[lesion.voxels].mean()
    if inside < LEAST_INSIDE:
        findings.problem(
            f"only {inside:.0%} of the lesion mask is inside the head, expected all of it. Check that the mask belongs "
            "to this scan and is not flipped."
        )
    elif lesion.voxels.sum() > MOST_OF_HEAD * head.sum():
        findings.problem("the lesion mask covers more than half of the head. Check whether it is inverted.")


def _head(scan: Volume) -> np.ndarray:
    """Return an approximate head mask with filled holes, computed on a coarser grid (about 4 mm)."""
    steps = np.maximum(1, np.round(4 / scan.grid.spacing_mm)).astype(int)
    sparse = scan.voxels[tuple(slice(None, None, step) for step in steps)]
    smooth = ndimage.uniform_filter(sparse, 3)
    # Half of Otsu's threshold, because the full threshold would exclude CSF, bone and regions of low coil sensitivity.
    closed = ndimage.binary_closing(smooth > threshold_otsu(smooth.ravel()) / 2, iterations=2)
    head = np.asarray(ndimage.binary_fill_holes(closed))
    for axis, (step, size) in enumerate(zip(steps, scan.voxels.shape, strict=True)):
        head = np.repeat(head, step, axis=axis).take(np.arange(size), axis=axis)
    return head
