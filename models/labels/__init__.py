"""Combination of scorers that is learnt from a few labelled patients."""
