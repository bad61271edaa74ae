"""Synthetic data sets distilled while the federation trains."""
