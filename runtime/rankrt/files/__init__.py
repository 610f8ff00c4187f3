"""rankrt's files: the host's cache, folders written whole, seals, rights. Knows no model."""
