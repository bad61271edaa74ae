"""Runs in Weights & Biases, and a dashboard for them."""
