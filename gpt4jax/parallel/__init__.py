"""Meshes and the partition of parameters and batches over them."""
