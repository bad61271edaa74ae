"""Metrics on trained models, one file each. Nothing here knows the unlearning methods."""
