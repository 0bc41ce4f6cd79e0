"""The BIDS dataset that is read, and the files that make a folder a BIDS derivative dataset."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...data_manifests.cohort.output_paths import OutputFolder
from ...data_manifests.errors import UserError, private
from ...data_manifests.typed_json import load_json
from ...data_manifests.user_paths import reach, real
from ..workflow.ownership import require_apart, write_own
from ..workflow.records import StageRecord, versions

_DESCRIPTION = "dataset_description.json"
_BIDS_VERSION = "1.10.0"
_IGNORED = (
    "*_zmap.nii.gz",
    "*_zmap.json",
    "*_logpmap.nii.gz",
    "*_logpmap.json",
    "*_logqmap.nii.gz",
    "*_logqmap.json",
    "figures",
    "records",
    "report",
    "scores",
    "set-aside",
)
"""What BIDS has no name for. A folder is named without a slash: with one, the validator does not ignore it."""
_README = """\
# Anomaly maps of voxout

Voxel-wise anomaly maps of brain MRI, relative to healthy controls. Research use only: not a medical device.

- `sub-*/[ses-*/]anat`: maps on the grid of the subject's own T1w (`space-orig`) and on the template
  (`space-MNI152NLin2009aSym`). `label-anomaly_probseg` is 1 - p: one healthy voxel in a thousand exceeds 0.999. It is
  not the probability of a lesion. `desc-anomaly_zmap` is the same as a z-score, without rounding near 1.
  `desc-clusters_dseg` numbers the findings, which the table of the same name describes. The JSON file beside each image
  says what it holds.
- `report/`: pages of the cohort and of each subject. They show the whole scan, with the face if it has one.
- `scores/`: evaluation against lesion masks, after the group level.
"""


def require_dataset(folder: Path) -> None:
    """Refuse a folder that is not the root of a BIDS dataset of raw scans, by its description.

    Raises
    ------
    UserError
    """
    reach(folder, "a BIDS dataset")
    advice = "Check the path, or read it anyway with --skip-bids-validation."
    try:
        about = load_json(folder / _DESCRIPTION)
    except FileNotFoundError as error:
        raise UserError(
            f"{private(folder)}: holds no {_DESCRIPTION}, expected the root of a BIDS dataset. {advice}"
        ) from error
    except (OSError, ValueError) as error:
        raise UserError(
            f"{private(folder)}: its {_DESCRIPTION} is not readable as JSON, expected Name and BIDSVersion. {advice}"
        ) from error
    missing = [name for name in ("Name", "BIDSVersion") if not isinstance(about, dict) or not about.get(name)]
    if missing:
        raise UserError(f"{private(folder)}: its {_DESCRIPTION} has no {missing[0]}, which BIDS requires. {advice}")
    if about.get("DatasetType", "raw") == "derivative":
        raise UserError(f"{private(folder)}: is a derivative dataset, expected one of raw scans. {advice}")


def require_place_of_derivatives(out: Path, inputs: Mapping[str, Path], dataset: Path) -> None:
    """Refuse a folder for derivatives that holds those of another program or a run, or lies among the inputs.

    Raises
    ------
    UserError
    """
    require_apart(out, inputs, dataset)
    folder = OutputFolder(out)
    if folder.config.exists():
        raise UserError(
            f"{private(out, 'the output folder')}: is the output folder of `voxout run`, expected one of voxout-bids. "
            "Choose another output folder."
        )
    if os.path.lexists(out / _DESCRIPTION) and StageRecord.read(folder.record("run")) is None:
        raise UserError(
            f"{private(out, 'the output folder')}: holds a dataset that voxout-bids did not write, expected an empty "
            "folder or one of an earlier call. Choose another output folder, such as its subfolder voxout."
        )


def describe_dataset(out: Path, work: Path) -> None:
    """Write what describes a derivative dataset: its description, what validators ignore, and a README.

    Parameters
    ----------
    out : Path
        Folder of the dataset, claimed before (see `claim`).
    work : Path
        Folder for intermediate results, which validators ignore if it lies in `out`.
    """
    about: dict[str, Any] = {
        "Name": "Anomaly maps of voxout",
        "BIDSVersion": _BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "voxout", "Version": versions()["voxout"]}],
    }
    within = real(work).relative_to(real(out)).parts[:1] if real(work).is_relative_to(real(out)) else ()
    files = {
        _DESCRIPTION: json.dumps(about, indent=2) + "\n",
        ".bidsignore": "".join(f"{name}\n" for name in (*_IGNORED, *within)),
        "README.md": _README,
    }
    for name, text in files.items():
        write_own(OutputFolder(out), out / name, text.encode())
