"""The packages of the extra ``dicom``."""

from importlib.util import find_spec

from ...data_manifests.errors import UserError

_PACKAGES = ("pydicom", "highdicom", "dcm2niix", "pynetdicom")


def require_extra() -> None:
    """Refuse to work without the packages of the extra.

    Raises
    ------
    UserError
    """
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise UserError(
            f"DICOM: the package {missing[0]} is not installed, expected voxout with its extra dicom. Run "
            "`pip install '.[dicom]'` in your clone of voxout."
        )
