"""Mask of the analysed voxels, and memory-mapped storage of all prepared subjects."""
