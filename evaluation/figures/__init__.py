"""Plots, slices and mosaics."""
