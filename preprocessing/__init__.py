"""From a head scan to a normalised brain on the template grid, and from brains to patches.

`prepare_subject` is the main job: orientation, bias field, brain extraction, registration to the MNI152
template, intensities in [0, 1], quality figures. `intensity.standardisation` learns the intensity scale of
the training controls, and `patches.volume_store` stacks all brains on one grid.
"""
