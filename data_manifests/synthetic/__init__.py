"""Synthetic heads and painted lesions with known truth."""
