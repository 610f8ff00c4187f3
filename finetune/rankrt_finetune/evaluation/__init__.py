"""Evaluation: what rerankers score on judged data, side by side. It imports no PyTorch unless a checkpoint is named."""
