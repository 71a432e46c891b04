"""Triton kernels for packed streams. They import triton, so the doors in `ops` load them late."""
