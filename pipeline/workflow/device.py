"""The torch device that a command works on."""

from ...data_manifests.errors import UserError


def choose_device(name: str) -> str:
    """Return the name of a usable torch device.

    Parameters
    ----------
    name : str
        ``"auto"`` (a GPU if there is one), ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ...

    Raises
    ------
    UserError
        The device is unknown, missing or does not compute.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        # Some torch devices accept numbers and never return one.
        right = float((torch.arange(4.0, device=name) @ torch.ones(4, device=name)).cpu()) == 6
    except (RuntimeError, AssertionError, NotImplementedError, ImportError, ValueError) as error:
        words = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"--device {name}: not usable here ({words}). Try cpu.") from error
    if not right:
        raise UserError(f"--device {name}: not usable here (it computes wrong results). Try cpu.")
    return name
