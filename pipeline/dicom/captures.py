"""Pictures and pages as DICOM objects: secondary captures, one of several pages, and an encapsulated PDF."""

from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    EncapsulatedPDFStorage,
    ExplicitVRLittleEndian,
    MultiFrameTrueColorSecondaryCaptureImageStorage,
    SecondaryCaptureImageStorage,
)

from .objects import RESEARCH_USE, completed, equipment, new_uid
from .results import Results

_OF_THE_STUDY = (
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "PatientBirthDate",
    "PatientSex",
    "PatientAge",
    "StudyInstanceUID",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "AccessionNumber",
    "ReferringPhysicianName",
)
"""Taken from the images, so that the archive files the objects with them. The standard wants them even if empty."""
_OPTIONAL = ("IssuerOfPatientID", "PatientAge")


def slice_captures(results: Results, pictures: Iterable[np.ndarray]) -> Iterator[Dataset]:
    """Return a secondary capture for each picture of an axial slice."""
    series = new_uid()
    for number, picture in enumerate(pictures, start=1):
        dataset = _capture(results, "slices", series, number, SecondaryCaptureImageStorage)
        dataset.PatientOrientation = ["L", "P"]
        _add_pixels(dataset, picture)
        yield completed(dataset)


def page_capture(results: Results, pages: np.ndarray) -> Dataset:
    """Return one secondary capture of several pages."""
    dataset = _capture(results, "overview", new_uid(), 1, MultiFrameTrueColorSecondaryCaptureImageStorage)
    dataset.PatientOrientation = None
    _add_pixels(dataset, pages)
    dataset.NumberOfFrames = len(pages)
    dataset.PageNumberVector = list(range(1, len(pages) + 1))
    dataset.FrameIncrementPointer = 0x00182001  # the page numbers
    return completed(dataset)


def pdf_document(results: Results, pdf: bytes) -> Dataset:
    """Return the report as an encapsulated PDF."""
    dataset = _dataset(results, "report", new_uid(), 1, EncapsulatedPDFStorage)
    dataset.Modality = "DOC"
    dataset.AcquisitionDateTime = None
    dataset.DocumentTitle = f"voxout anomaly map. {RESEARCH_USE}"
    dataset.ConceptNameCodeSequence = []
    dataset.MIMETypeOfEncapsulatedDocument = "application/pdf"
    dataset.EncapsulatedDocumentLength = len(pdf)
    dataset.EncapsulatedDocument = pdf + b"\0" * (len(pdf) % 2)
    return completed(dataset)


def _capture(results: Results, name: str, series: str, number: int, sop_class: str) -> Dataset:
    dataset = _dataset(results, name, series, number, sop_class)
    dataset.Modality = "OT"
    dataset.ImageType = ["DERIVED", "SECONDARY"]
    dataset.DerivationDescription = f"Anomaly map over the scan, coloured from z = {results.threshold:.2f}"
    dataset.ImageComments = RESEARCH_USE
    dataset.SourceImageSequence = [_reference(image) for image in results.source.datasets]
    return dataset


def _reference(image: Dataset) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = image.SOPClassUID, image.SOPInstanceUID
    return item


def _dataset(results: Results, name: str, series: str, number: int, sop_class: str) -> Dataset:
    """Return the start of an object: patient and study of the images, own series, own equipment."""
    image, about = results.source.datasets[0], equipment(name, number)
    dataset, now = Dataset(), datetime.now()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = sop_class, about["sop_instance_uid"]
    for tag in _OF_THE_STUDY:
        if tag in image or tag not in _OPTIONAL:
            setattr(dataset, tag, image.get(tag))
    dataset.SeriesInstanceUID, dataset.SeriesNumber = series, about["series_number"]
    dataset.SeriesDescription, dataset.InstanceNumber = about["series_description"], number
    dataset.Manufacturer, dataset.ManufacturerModelName = about["manufacturer"], about["manufacturer_model_name"]
    dataset.SoftwareVersions, dataset.DeviceSerialNumber = about["software_versions"], about["device_serial_number"]
    dataset.ConversionType = "WSD"
    # Only the id of the subject is burnt in, which identifies nobody.
    dataset.BurnedInAnnotation = "NO"
    dataset.ContentDate, dataset.ContentTime = now.strftime("%Y%m%d"), now.strftime("%H%M%S")
    dataset.InstanceCreationDate, dataset.InstanceCreationTime = dataset.ContentDate, dataset.ContentTime
    return dataset


def _add_pixels(dataset: Any, picture: np.ndarray) -> None:
    dataset.Rows, dataset.Columns = picture.shape[-3:-1]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, "RGB", 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 8, 8, 7, 0
    pixels = picture.tobytes()
    dataset.PixelData = pixels + b"\0" * (len(pixels) % 2)
