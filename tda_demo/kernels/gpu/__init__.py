"""Triton kernels for CUDA GPUs; importing the package needs neither."""
