"""HTML pages of a cohort and of a subject."""
