"""All that is wrong with a cohort's files, told before anything long starts.

Every header and every array is opened once. What is wrong with one subject costs that subject; what is wrong with
the cohort stops it.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from skimage.filters import threshold_otsu

from ..errors import UserError, private
from ..images.volume import Grid, Volume, read_mask, read_volume
from ..terms import BIDS_SUFFIX, Modality
from .subject import Manifest, SubjectRecord

LEAST_INSIDE, MOST_OF_HEAD = 0.5, 0.5
ENOUGH_CONTROLS = 20
EMPTY_LESION_MASK = (
    "the lesion mask is empty, expected a lesion. Mend it, or leave column lesion_mask empty: the map is then made, "
    "but not scored."
)

Judge = Callable[[SubjectRecord, Mapping[Modality, Volume], Volume | None], Sequence[str]]
"""What later stages would refuse in a subject's scans and brain mask, one sentence each, without the subject's key."""


@dataclass(frozen=True)
class Problem:
    """One sentence for the user.

    Attributes
    ----------
    subject_key : str
        ``""`` when it concerns the cohort.
    sentence : str
        Complete in itself: it names the subject.
    """

    subject_key: str
    sentence: str

    @property
    def bare(self) -> str:
        """The sentence without the subject's name."""
        return self.sentence.removeprefix(f"{self.subject_key}: ")


@dataclass(frozen=True)
class CheckResult:
    """What was found.

    Attributes
    ----------
    problems : tuple of Problem
        Subjects with a problem cannot go on.
    warnings : tuple of Problem
        Worth knowing; they stop nobody.
    good : tuple of str
        Keys of the subjects without problems, in the manifest's order.
    """

    problems: tuple[Problem, ...]
    warnings: tuple[Problem, ...]
    good: tuple[str, ...]

    @property
    def sentences(self) -> tuple[str, ...]:
        """The problems; what is the same for several subjects is said once, with all their names."""
        keys = {*self.good, *(problem.subject_key for problem in self.problems)} - {""}
        having: dict[str, dict[str, None]] = {}
        for problem in self.problems:
            having.setdefault(problem.bare, {})[problem.subject_key] = None
        return tuple(_said_of(list(named), len(keys), bare) for bare, named in having.items())


def _said_of(keys: Sequence[str], number: int, sentence: str) -> str:
    if keys == [""]:
        return sentence
    return f"{f'all {number} subjects' if len(keys) == number > 1 else ', '.join(keys)}: {sentence}"


def check_manifest(
    manifest: Manifest,
    *,
    modalities: Sequence[Modality],
    judge: Judge | None = None,
    fewest_controls: int = 4,
    progress: Callable[[int, int, str], None] | None = None,
) -> CheckResult:
    """Open everything that a manifest names.

    Parameters
    ----------
    manifest : Manifest
    modalities : sequence of Modality
        The images that every subject must have.
    judge : callable, optional
        Called as ``judge(record, scans, brain_mask)`` with what could be read: what it returns are problems too.
    fewest_controls : int
        So many controls without problems there must be; 0 where a trained model is applied.
    progress : callable, optional
        Called as ``progress(done, total, key)`` after each subject.

    Returns
    -------
    CheckResult
        Nothing that a user can cause is raised.
    """
    problems: list[Problem] = []
    warnings: list[Problem] = []
    scans: dict[bytes, str] = {}
    for number, record in enumerate(manifest, start=1):
        findings = _Findings(record)
        _check_subject(record, modalities, judge, findings, scans)
        problems += findings.problems
        warnings += findings.warnings
        if progress:
            progress(number, len(manifest), record.key)
    broken = {problem.subject_key for problem in problems}
    good = tuple(record.key for record in manifest if record.key not in broken)
    controls = [record for record in manifest.controls if record.key in good]
    if len(controls) < fewest_controls:
        problems.append(
            Problem(
                "",
                f"{len(controls)} controls can be used, expected at least {fewest_controls} (better {ENOUGH_CONTROLS} "
                "or more). Add healthy scans, or mend those named here.",
            )
        )
    elif fewest_controls > 0 and len(controls) < ENOUGH_CONTROLS:
        warnings.append(
            Problem("", f"{len(controls)} controls are few: maps get steadier with {ENOUGH_CONTROLS} or more.")
        )
    unmasked = [record.key for record in manifest.patients if record.lesion_mask is None]
    if unmasked:
        warnings.append(
            Problem("", f"{len(unmasked)} patients have no lesion mask: their maps are made, but not scored.")
        )
    return CheckResult(tuple(problems), tuple(warnings), good)


class _Findings:
    """Problems and warnings of one subject."""

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
    """One sentence for each image that a subject must have and does not."""
    return [
        f"has no {BIDS_SUFFIX[modality]}, expected one (preprocessing.modalities asks for it). Name it in column "
        f"{modality}, or take {modality} out of the settings."
        for modality in modalities
        if modality not in record.images
    ]


def on_another_grid(mask: Volume, grid: Grid, name: str, of: Modality) -> str | None:
    """The sentence for a mask that does not lie on the grid of its scan."""
    if mask.grid.same_as(grid):
        return None
    told, apart = BIDS_SUFFIX[of], mask.grid.apart_in_words(grid)
    other = " If it was drawn on another image, name that in column mask_of." if name == "lesion mask" else ""
    return (
        f"{name} and {told} lie on different grids ({mask.grid} against {grid}{apart}). "
        f"Resample the mask to the {told} with nearest-neighbour interpolation.{other}"
    )


def _check_subject(
    record: SubjectRecord,
    modalities: Sequence[Modality],
    judge: Judge | None,
    findings: _Findings,
    scans: dict[bytes, str],
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
                f"{private(path.name)} does not say how it is oriented (both form codes are 0): it is taken as "
                f"{volume.grid.orientation}. Check left and right in its map."
            )
        if volume.grid.qform is not None:
            findings.warning(
                f"the qform of {private(path.name)} is turned or shifted against its sform: the sform is used."
            )
        if volume.grid.unit is not None:
            findings.warning(
                f"the header of {private(path.name)} names the {volume.grid.unit} as its unit, but its numbers are "
                "millimetres: they are taken as such."
            )
        twin = scans.setdefault(hashlib.blake2b(volume.voxels.tobytes()).digest(), record.key)
        if twin != record.key:
            findings.warning(f"{private(path.name)} holds the same voxels as a scan of {twin}. Keep one of the two.")
    brain = findings.read(read_mask, record.brain_mask) if record.brain_mask else None
    fits = brain is not None and _on_grid_of(brain, read.get("t1w"), "brain mask", "t1w", findings)
    for sentence in judge(record, read, brain if fits else None) if judge else ():
        findings.problem(sentence)
    lesion = findings.read(read_mask, record.lesion_mask) if record.lesion_mask else None
    if lesion is not None:
        _check_lesion_mask(record, lesion, brain, read.get(record.mask_of), findings)


def _on_grid_of(mask: Volume, scan: Volume | None, name: str, of: Modality, findings: _Findings) -> bool:
    sentence = None if scan is None else on_another_grid(mask, scan.grid, name, of)
    if sentence is None:
        return True
    findings.problem(sentence)
    return False


def _check_lesion_mask(
    record: SubjectRecord, lesion: Volume, brain: Volume | None, scan: Volume | None, findings: _Findings
) -> None:
    if not _on_grid_of(lesion, scan, "lesion mask", record.mask_of, findings):
        return
    if not lesion.voxels.any():
        if record.group == "patient":
            findings.problem(EMPTY_LESION_MASK)
        return
    if record.group == "control":
        findings.problem(
            "is a control whose lesion mask holds a lesion, expected healthy controls. Call it a patient, or leave "
            "column lesion_mask empty."
        )
    if scan is None:
        return
    head = _head(scan)
    if brain is not None and brain.grid.same_as(scan.grid):
        head |= brain.voxels
    inside = head[lesion.voxels].mean()
    if inside < LEAST_INSIDE:
        findings.problem(
            f"only {inside:.0%} of the lesion mask lie inside the head, expected all of it. Check that the mask "
            "belongs to this scan and is not flipped."
        )
    elif lesion.voxels.sum() > MOST_OF_HEAD * head.sum():
        findings.problem("the lesion mask covers more than half of the head. Is it inverted?")


def _head(scan: Volume) -> np.ndarray:
    """Roughly where the head is: holes filled, so that a cavity counts as inside; found on every n-th voxel."""
    steps = np.maximum(1, np.round(4 / scan.grid.spacing_mm)).astype(int)
    sparse = scan.voxels[tuple(slice(None, None, step) for step in steps)]
    smooth = ndimage.uniform_filter(sparse, 3)
    # Half of Otsu's threshold: that alone would leave out fluid, bone and what a coil does not reach.
    closed = ndimage.binary_closing(smooth > threshold_otsu(smooth.ravel()) / 2, iterations=2)
    head = np.asarray(ndimage.binary_fill_holes(closed))
    for axis, (step, size) in enumerate(zip(steps, scan.voxels.shape, strict=True)):
        head = np.repeat(head, step, axis=axis).take(np.arange(size), axis=axis)
    return head
