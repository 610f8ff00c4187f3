"""This computer: processor, GPUs, memory, and the device that a user names."""
