"""A fitted model as a MONAI bundle, which MONAI's own commands run, and back."""
