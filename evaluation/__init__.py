"""From anomaly maps and lesion masks to numbers, figures and reports.

Knows no model: it scores anybody's maps. Every figure names the mask and the space it was computed in.
"""
