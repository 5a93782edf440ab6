"""Arms on a CUDA GPU: a transformers model with Triton blocks, its step captured in a CUDA graph."""
