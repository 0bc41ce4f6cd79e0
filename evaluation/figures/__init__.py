"""Curves, slices and mosaics."""
