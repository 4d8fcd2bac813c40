"""Inference: the decode loop and sampling."""
