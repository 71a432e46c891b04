"""Kernels for CPUs, compiled by numba when they are first called. Importing this package imports no numba."""
