"""NIfTI images with their geometry, read strictly."""
