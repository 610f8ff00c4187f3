"""`rankrt calibrate`: a map from an artifact's logits to probabilities, fitted to pairs that people labelled."""
