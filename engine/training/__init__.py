"""A run and its stages: data order, start, learning rates, the stage loop."""
