"""Benchmarks of federated unlearning on PyTorch and Lightning Fabric."""

__version__ = "0.1.0"
