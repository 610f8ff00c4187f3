"""One GPU measured in seven minutes: correctness, speed beside PyTorch, kernels, memory, a server under load."""
