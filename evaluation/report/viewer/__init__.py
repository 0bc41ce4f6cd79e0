"""Viewer of the subject pages: unmodified NiiVue and the volumes it shows."""
