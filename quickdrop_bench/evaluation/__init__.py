"""Metrics on trained models. Nothing here knows the unlearning methods."""
