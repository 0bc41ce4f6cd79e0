"""The torch devices that a command works on."""

from collections.abc import Mapping

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


def choose_devices(names: str) -> tuple[str, ...]:
    """Return the names of one or more usable torch devices.

    Parameters
    ----------
    names : str
        As for `choose_device`, or several of one kind with commas between them: ``"cuda:0,cuda:1"``.

    Raises
    ------
    UserError
        One of them cannot be used, they are of different kinds, or a GPU is named twice.
    """
    if "," not in names:
        return (choose_device(names),)
    devices = tuple("cuda:0" if name == "cuda" else name for name in names.split(","))
    kinds = {name.partition(":")[0] for name in devices}
    if kinds not in ({"cpu"}, {"cuda"}):
        raise UserError(f"--device {names}: found several, expected GPUs only. Use names such as cuda:0,cuda:1.")
    if kinds == {"cuda"} and len(set(devices)) < len(devices):
        raise UserError(f"--device {names}: found a GPU twice, expected each once. Leave one out.")
    return tuple(choose_device(name) for name in devices)


def require_one_command(environment: Mapping[str, str]) -> None:
    """Refuse a command that torchrun has started several times.

    Raises
    ------
    UserError
        The environment is that of one of several processes.
    """
    if environment.get("WORLD_SIZE", "1") != "1":
        raise UserError(
            f"found WORLD_SIZE={environment['WORLD_SIZE']}, as if started by torchrun, expected a command that is "
            "started once: it starts a process for each GPU itself. Give it without torchrun, as in `voxout train "
            "COHORT OUT --device cuda:0,cuda:1`, or unset WORLD_SIZE."
        )
