"""Bias field correction, intensity standardisation, derived maps, and the channels of the models."""
