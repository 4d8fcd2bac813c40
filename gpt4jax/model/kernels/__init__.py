"""Attention kernels for TPU and GPU: the two passes of one part of a mask, over the tiles that it shows."""
