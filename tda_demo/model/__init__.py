"""What a model is: families, feed-forward blocks, precision, placement, weights."""
