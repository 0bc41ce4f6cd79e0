"""Strict reading and writing of NIfTI images and their geometry."""
