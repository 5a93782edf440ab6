"""What is measured once per model: on which passages, and where the result is kept."""
