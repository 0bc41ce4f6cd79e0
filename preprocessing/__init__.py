"""From a head scan to a normalised brain on the template grid, and from brains to patches.

`prepare_subject` is the chapter's main job: orientation, bias field, brain extraction, registration to the MNI152
template, intensities in [0, 1], quality figures. `patch_store` then stacks all subjects on one grid.
"""
