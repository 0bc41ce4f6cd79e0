"""Bias field, intensity standardisation, derived maps, and the channels that models see."""
