"""What one GPU answers in seven minutes: correctness, speed beside PyTorch, kernels, memory, a server under load."""
