"""Fine-tuning by sentence-transformers' CrossEncoderTrainer: groups of passages, losses, the run, the result."""
