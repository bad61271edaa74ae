"""Federated averaging on Lightning Fabric."""
