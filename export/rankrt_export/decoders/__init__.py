"""What decoders are asked, and where their scores are read."""
