"""What a model is: its family, and the projections its layers are made of."""
