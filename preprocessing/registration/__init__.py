"""Registration to the MNI152 template, and resampling."""
