"""Templates of the reports: HTML, style sheets and scripts."""
