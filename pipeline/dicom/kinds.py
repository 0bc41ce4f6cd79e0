"""Kinds of series by the tags of their images: weighting, localizers, derived images, other modalities.

The names of protocols and series are not read: they are free text in the language of the site, and may hold a name.
"""

from typing import Any

from pydicom.dataset import Dataset

T1W, FLAIR = "T1w", "FLAIR"
UNKNOWN, DERIVED = "MR of unknown contrast", "derived image"
TAGS = (
    "Modality",
    "ImageType",
    "ComplexImageComponent",
    "BurnedInAnnotation",
    "MRAcquisitionType",
    "ScanningSequence",
    "SequenceVariant",
    "EchoPlanarPulseSequence",
    "AngioFlag",
    "AcquisitionContrast",
    "EchoTime",
    "RepetitionTime",
    "InversionTime",
    "FlipAngle",
    "ContrastBolusAgent",
    "ContrastBolusAgentSequence",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
)
"""Tags that `kind_of` reads."""
_ENHANCED = {
    "EchoTime": "EffectiveEchoTime",
    "InversionTime": "InversionTimes",
    "ContrastBolusAgent": "ContrastBolusAgentSequence",
}
"""Names of the same values in multi-frame images."""
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_MR_IMAGES = {
    "1.2.840.10008.5.1.4.1.1.4",  # MR Image Storage
    "1.2.840.10008.5.1.4.1.1.4.1",  # Enhanced MR
    "1.2.840.10008.5.1.4.1.1.4.4",  # Legacy Converted Enhanced MR
}
_CONTRASTS = {
    "T1": T1W,
    "FLUID_ATTENUATED": FLAIR,
    "T2": "T2w",
    "T2_STAR": "T2*w",
    "PROTON_DENSITY": "proton density",
    "TOF": "angiogram",
    "DIFFUSION": "diffusion or functional MRI",
}
"""Kinds by AcquisitionContrast, which enhanced images state."""
_RECONSTRUCTED = {"SECONDARY", "MPR", "MIP", "MNIP", "PROJECTION IMAGE", "REFORMATTED", "RESAMPLED", "AVERAGE"}
_NO_MAGNITUDE = {"P", "PHASE", "PHASE MAP", "R", "REAL", "I", "IMAGINARY", "MIXED"}


def value_of(header: Dataset, tag: str) -> Any:
    """Return the value of a tag, also from the functional groups of a multi-frame image; None without one."""
    for name in (tag, _ENHANCED.get(tag)):
        if name is None:
            continue
        if (value := header.get(name)) not in (None, ""):
            return value
        for groups in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
            for group in (header.get(groups) or ())[:1]:
                for element in group:
                    item = element.value[0] if element.VR == "SQ" and element.value else None
                    if item is not None and (value := item.get(name)) not in (None, ""):
                        return value
    return None


def kind_of(header: Dataset) -> str:
    """Return the kind of an image in words: `T1W`, `FLAIR`, or what else it is."""
    sop_class, modality = str(header.get("SOPClassUID") or ""), str(header.get("Modality") or "")
    if sop_class.startswith(_SECONDARY_CAPTURE) or value_of(header, "BurnedInAnnotation") == "YES":
        return "screenshot"
    if modality != "MR":
        return modality if modality.isalpha() and len(modality) <= 5 else "no image"
    if sop_class not in _MR_IMAGES:
        return "no image"
    types = _words(header.get("ImageType"))
    if "LOCALIZER" in types:
        return "localizer"
    if _RECONSTRUCTED & set(types) or types[:1] == ["DERIVED"]:
        return DERIVED
    component = value_of(header, "ComplexImageComponent") or "MAGNITUDE"
    if _NO_MAGNITUDE & set(types[2:]) or component != "MAGNITUDE":
        return "phase image"
    stated = str(value_of(header, "AcquisitionContrast") or "")
    return _CONTRASTS.get(stated) or _by_timing(header)


def _by_timing(header: Dataset) -> str:
    """Return the kind by sequence and times, of which the names of protocols say the same or nothing."""
    sequence = _words(value_of(header, "ScanningSequence"))
    if "EP" in sequence or value_of(header, "EchoPlanarPulseSequence") == "YES":
        return "diffusion or functional MRI"
    if value_of(header, "AngioFlag") == "Y":
        return "angiogram"
    echo, repetition = (_number(value_of(header, tag)) for tag in ("EchoTime", "RepetitionTime"))
    inversion = _number(value_of(header, "InversionTime")) or 0
    if echo is None or repetition is None:
        return UNKNOWN
    if echo >= 60:
        return FLAIR if inversion >= 1200 else "T2w"
    is_gradient_echo = "GR" in sequence or "SE" not in sequence
    if is_gradient_echo:
        if echo >= 12:
            return "T2*w"
        # With an inversion (MPRAGE), or spoiled with a short repetition time (FLASH, SPGR, TFE).
        is_t1 = 300 <= inversion <= 1300 or (inversion == 0 and repetition <= 50)
        return T1W if is_t1 and value_of(header, "MRAcquisitionType") == "3D" else UNKNOWN
    if echo < 40 and (repetition <= 1000 or 400 <= inversion <= 1200):
        return T1W
    return "proton density" if echo < 40 and not inversion else UNKNOWN


def _words(value: Any) -> list[str]:
    values = [value] if isinstance(value, str) else list(value or ())
    return [str(word).strip().upper() for word in values]


def _number(value: Any) -> float | None:
    if isinstance(value, str):
        return float(value)
    if value is not None and not isinstance(value, int | float):
        value = next(iter(value), None)
    return None if value is None else float(value)
