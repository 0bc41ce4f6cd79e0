"""Synthetic DICOM series of a volume: single slices or one multi-frame file, in any plane, with planted names."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import EnhancedMRImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid
from scipy.spatial.transform import Rotation
from voxout.data_manifests.images.volume import Volume

NAME = "Wexquibl"
BORN, SCANNED, ACCESSION, HOSPITAL = "19610713", "20240229", "ACC7730159", "Zorbfeld Clinic"
PLANTED = (NAME, BORN, SCANNED, ACCESSION, "Zorbfeld", "PID48151623", "Dr. Quamtrix")
"""What is in every image, and may be in nothing that voxout writes but DICOM."""
PLANES = {"axial": ("H", "P", "L"), "sagittal": ("L", "F", "P"), "coronal": ("P", "F", "L")}
T1W = {
    "ImageType": ["ORIGINAL", "PRIMARY", "M", "ND", "NORM"],
    "ScanningSequence": ["GR", "IR"],
    "SequenceVariant": ["SK", "SP", "MP"],
    "MRAcquisitionType": "3D",
    "EchoTime": 2.9,
    "RepetitionTime": 2300.0,
    "InversionTime": 900.0,
    "FlipAngle": 9.0,
}
T2W = T1W | {"ScanningSequence": "SE", "EchoTime": 99.0, "RepetitionTime": 5000.0, "InversionTime": None}
FLAIR = T1W | {"ScanningSequence": ["SE", "IR"], "EchoTime": 390.0, "RepetitionTime": 5000.0, "InversionTime": 1800.0}


def in_plane(volume: Volume, plane: str) -> highdicom.Volume:
    """Return a volume as a scanner would acquire it; "oblique" is sagittal, and turned about all axes."""
    whole = np.round(volume.voxels / max(float(volume.voxels.max()), 1e-6) * 1000)
    affine = volume.affine
    if plane == "oblique":
        turn = np.eye(4)
        turn[:3, :3] = Rotation.from_euler("xyz", [7, -9, 12], degrees=True).as_matrix()
        affine, plane = turn @ affine, "sagittal"
    made = highdicom.Volume(
        whole.astype(np.uint16), affine, "PATIENT", str(generate_uid(None)), from_reference_convention="RAS"
    )
    return made.to_patient_orientation(PLANES[plane])


def classic(scan: highdicom.Volume, *, study: str | None = None, number: int = 3, **tags: Any) -> list[Dataset]:
    """Return a series of single slices."""
    series, study = str(generate_uid(None)), study or str(generate_uid(None))
    positions, (axes,) = scan.get_plane_positions(), scan.get_plane_orientation()
    (measures,) = scan.get_pixel_measures()
    slices = []
    for index, (pixels, (position,)) in enumerate(zip(scan.array, positions, strict=True), start=1):
        dataset = _image(MRImageStorage, scan, study, series, number)
        dataset.InstanceNumber = index
        dataset.ImagePositionPatient = position.ImagePositionPatient
        dataset.ImageOrientationPatient = axes.ImageOrientationPatient
        dataset.PixelSpacing, dataset.SliceThickness = measures.PixelSpacing, measures.SliceThickness
        dataset.EchoTrainLength, dataset.ScanOptions = 1, None
        for tag, value in (T1W | tags).items():
            setattr(dataset, tag, value)
        _add_pixels(dataset, pixels)
        slices.append(dataset)
    return slices


def enhanced(scan: highdicom.Volume, *, study: str | None = None, number: int = 3, **tags: Any) -> list[Dataset]:
    """Return a series of one multi-frame image."""
    dataset = _image(EnhancedMRImageStorage, scan, study or str(generate_uid(None)), str(generate_uid(None)), number)
    dataset.InstanceNumber, dataset.NumberOfFrames = 1, len(scan.array)
    dataset.ImageType, dataset.MRAcquisitionType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"], "3D"
    dataset.AcquisitionContrast, dataset.ComplexImageComponent = "T1", "MAGNITUDE"
    dataset.AcquisitionDateTime, dataset.AcquisitionDuration = f"{SCANNED}101112", 300.0
    dataset.PixelPresentation, dataset.VolumetricProperties = "MONOCHROME", "VOLUME"
    dataset.DimensionOrganizationSequence = [Dataset()]
    dataset.DimensionOrganizationSequence[0].DimensionOrganizationUID = str(generate_uid(None))
    shared = Dataset()
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = (
        scan.get_pixel_measures(),
        scan.get_plane_orientation(),
    )
    shared.MRTimingAndRelatedParametersSequence = [Dataset()]
    shared.MRTimingAndRelatedParametersSequence[0].RepetitionTime = 2300.0
    shared.MRTimingAndRelatedParametersSequence[0].FlipAngle = 9.0
    shared.MREchoSequence = [Dataset()]
    shared.MREchoSequence[0].EffectiveEchoTime = 2.9
    shared.PixelValueTransformationSequence = [Dataset()]
    for tag, value in {"RescaleIntercept": 0, "RescaleSlope": 1, "RescaleType": "US"}.items():
        setattr(shared.PixelValueTransformationSequence[0], tag, value)
    dataset.SharedFunctionalGroupsSequence = [shared]
    frames = []
    for index, position in enumerate(scan.get_plane_positions(), start=1):
        frame, content = Dataset(), Dataset()
        content.StackID, content.InStackPositionNumber, content.DimensionIndexValues = "1", index, [1, index]
        frame.FrameContentSequence, frame.PlanePositionSequence = [content], position
        frames.append(frame)
    dataset.PerFrameFunctionalGroupsSequence = Items(frames)
    for tag, value in tags.items():
        setattr(dataset, tag, value)
    _add_pixels(dataset, scan.array)
    return [dataset]


def save(datasets: Sequence[Dataset], folder: Path) -> Path:
    """Write images with names that say nothing, in another order than that of the slices."""
    folder.mkdir(parents=True, exist_ok=True)
    order = np.random.default_rng(0).permutation(len(datasets))
    for number, index in enumerate(order):
        dataset = datasets[index]
        dataset.save_as(folder / f"IM{number:04}", enforce_file_format=True)
    return folder


def _image(sop_class: str, scan: highdicom.Volume, study: str, series: str, number: int) -> Dataset:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SpecificCharacterSet = "ISO_IR 100"
    dataset.SOPClassUID, dataset.SOPInstanceUID = sop_class, str(generate_uid(None))
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = study, series
    dataset.FrameOfReferenceUID, dataset.PositionReferenceIndicator = scan.frame_of_reference_uid, None
    dataset.Modality, dataset.SeriesNumber, dataset.StudyID = "MR", number, "7"
    dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate = f"{NAME}^Jörg", "PID48151623", BORN
    dataset.PatientSex, dataset.PatientAge, dataset.PatientPosition = "M", "062Y", "HFS"
    for moment in ("Study", "Series", "Acquisition", "Content"):
        setattr(dataset, f"{moment}Date", SCANNED)
        setattr(dataset, f"{moment}Time", "101112")
    dataset.AccessionNumber, dataset.InstitutionName = ACCESSION, HOSPITAL
    dataset.ReferringPhysicianName, dataset.PatientComments = "Dr. Quamtrix", f"brother of {NAME}"
    dataset.SeriesDescription = dataset.ProtocolName = f"T1 {NAME}"
    dataset.StationName, dataset.DeviceSerialNumber = "Zorbfeld1", "12345"
    dataset.Manufacturer, dataset.ManufacturerModelName, dataset.SoftwareVersions = "SIEMENS", f"Prisma {NAME}", "syngo"
    dataset.MagneticFieldStrength, dataset.BodyPartExamined = 3.0, "BRAIN"
    return dataset


def _add_pixels(dataset: Dataset, pixels: np.ndarray) -> None:
    dataset.Rows, dataset.Columns = pixels.shape[-2:]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 0
    dataset.PixelData = np.ascontiguousarray(pixels, np.uint16).tobytes()
