"""Compiled kernels of token-level methods: overloads of ``layer.mlp`` and ``layer.project``."""
