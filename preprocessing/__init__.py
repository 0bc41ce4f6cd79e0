"""From a head scan to a normalised brain on the template grid, and from brains to patches.

`prepare_subject` is the chapter's main job: orientation, bias field, brain extraction, registration to the MNI152
template, intensities in [0, 1], quality figures. `standardisation` learns from the training controls what all brains
are then brought to have in common, and `volume_store` stacks them on one grid.
"""
