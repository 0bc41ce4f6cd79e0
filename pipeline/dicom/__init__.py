"""DICOM: the T1w of a study as a scan for a model, and the results of a subject as DICOM for the archive it came from.

Everything here needs the extra ``dicom`` (see `extra`).
"""
