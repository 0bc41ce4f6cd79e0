"""Synthetic heads and painted lesions with known ground truth."""
