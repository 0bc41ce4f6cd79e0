"""Reading of DICOM files, silently: pydicom prints odd values, which may be names."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from pydicom import config
from pydicom.errors import InvalidDicomError

UNREADABLE = (InvalidDicomError, OSError, EOFError, ValueError, TypeError, KeyError, AttributeError)
"""Errors of pydicom for files that are no DICOM, or damaged."""


@contextmanager
def silent() -> Iterator[None]:
    """Let pydicom print nothing about values within the block, which it decodes when they are first used.

    As a decorator, within a function.
    """
    logger = logging.getLogger("pydicom")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), config.disable_value_validation():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
