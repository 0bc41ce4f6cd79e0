"""Preprocessing of head scans: normalised brains on the template grid.

`prepare_subject` runs orientation, brain extraction, bias field correction, registration to the MNI152 template,
intensity scaling to [0, 1] and quality control. `intensity.standardisation` learns the intensity scale of the training
controls. `patches.volume_store` stacks the prepared images of all subjects on one grid.
"""
