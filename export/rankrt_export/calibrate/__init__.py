"""What text does to a model: activations, drifts, and the layers that stay exact."""
