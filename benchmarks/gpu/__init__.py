"""Parts of benchmarks/gpu_check.py: what a CUDA machine says of the kernels and of whole models."""
