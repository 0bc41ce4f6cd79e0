"""Synthetic heads and simulated lesions with known ground truth."""
