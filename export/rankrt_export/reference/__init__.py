"""The model in PyTorch, whose scores are the truth."""
