"""Prototypes of healthy patches in each part of the brain."""
