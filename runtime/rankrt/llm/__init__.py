"""What only decoders have: exits, shared prefixes, progressive ranking."""
