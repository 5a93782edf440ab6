"""One arm of a race: a model, its own KV cache, and what it computes at each step."""
