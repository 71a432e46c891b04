"""Triton kernels for packed streams. They import triton, so the doors in `ops` load them late.

What counts a stream's tokens is in `do_not_specialize`: Triton compiles a kernel once more where a number is divisible
by 16, and a batch in sixteen would wait for that.
"""
