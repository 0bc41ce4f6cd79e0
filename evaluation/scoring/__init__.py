"""Scores of maps against lesion masks, of a subject and of a cohort."""
