"""Compiled kernels of token-level methods, a method a file: each an overload of ``mlp.mlp``."""
