"""The voxels that are analysed, and all prepared subjects in one memory-mapped file."""
