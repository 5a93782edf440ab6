"""Arms on a CPU: the compiled step, and compiled linears for decoders it does not cover."""
