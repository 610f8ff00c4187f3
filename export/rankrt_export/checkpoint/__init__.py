"""A checkpoint as it is on disk: config, weights, adapter, tokenizer. Writes no graph."""
