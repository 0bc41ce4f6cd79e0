"""The BIDS-App: levels of analysis on a BIDS dataset, and their results as a BIDS derivative dataset."""
