"""A checkpoint as it lies on disk: config, weights, adapter, tokenizer. Writes no graph."""
