"""The scans that a MONAI bundle maps, one after the other."""

import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch.utils.data import IterableDataset

from ...data_manifests.cohort.bids import read_bids
from ...data_manifests.cohort.bids_selection import BidsSelection
from ...data_manifests.cohort.single_scan import is_scan, single_scan
from ...data_manifests.errors import UserError, counted, plain_errors, private
from ...data_manifests.user_paths import given_path
from ..exit_codes import SOME_FAILED

_LOGGER = logging.getLogger(__name__)


class PreparedScans(IterableDataset):
    """The prepared scans of a folder. One that cannot be prepared is logged, and left out.

    Parameters
    ----------
    folder : str or Path
        A folder of T1w scans (.nii, .nii.gz, .mgz), or a BIDS dataset.
    transform : callable
        Prepares a scan: ``{"t1w": path}``, with the paths of its ``flair`` and ``brain_mask`` if there are any.
    output_dir : str or Path
        Scans that have a map there are left out.

    Raises
    ------
    UserError
        The folder holds no scan.
    """

    def __init__(
        self, folder: str | Path, transform: Callable[[Mapping[str, str]], Mapping[str, Any]], output_dir: str | Path
    ):
        self.transform = transform
        with plain_errors():
            found, done = scans_in(given_path(folder, "dataset_dir")), given_path(output_dir, "output_dir")
        self.scans = {key: paths for key, paths in found.items() if not (done / key).is_dir()}
        self.failed = 0
        if there := len(found) - len(self.scans):
            _LOGGER.info("%s of %s have a map already", there, counted(len(found), "scan"))

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        for number, (key, paths) in enumerate(self.scans.items(), 1):
            _LOGGER.info("%s: %s of %s", key, number, len(self.scans))
            try:
                prepared = self.transform(paths)
            except UserError as error:
                _LOGGER.error("%s", error)
                self.failed += 1
            else:
                yield prepared

    def end(self) -> None:
        """Exit with code 3, as `voxout` does, if scans could not be prepared."""
        if self.failed:
            _LOGGER.error("%s of %s could not be prepared", self.failed, counted(len(self.scans), "scan"))
            sys.exit(SOME_FAILED)


def scans_in(folder: Path) -> dict[str, dict[str, str]]:
    """List the scans of a folder by their keys: of a BIDS dataset by its names, otherwise each image as a T1w."""
    if any(folder.glob("sub-*/")):
        records = tuple(read_bids(folder, BidsSelection(unknown_group="patient")))  # groups do not matter
    else:
        records = tuple(record for path in sorted(folder.glob("*")) if is_scan(path) for record in single_scan(path))
    if not records:
        raise UserError(
            f"{private(folder, 'dataset_dir')}: found no scan, expected a folder of T1w scans (.nii, .nii.gz, .mgz) or "
            "a BIDS dataset. Give it with --dataset_dir."
        )
    keys = [record.key for record in records]
    if twice := sorted({key for key in keys if keys.count(key) > 1}):
        raise UserError(
            f"{private(folder, 'dataset_dir')}: found {counted(keys.count(twice[0]), 'scan')} of {twice[0]}, expected "
            "one of each subject and session. Keep the others in another folder."
        )
    own = {record.key: {**record.images, "brain_mask": record.brain_mask} for record in records}
    return {key: {name: str(path) for name, path in paths.items() if path is not None} for key, paths in own.items()}
