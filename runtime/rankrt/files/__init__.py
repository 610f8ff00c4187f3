"""What rankrt keeps on a disk: the host's cache, folders written whole, seals, rights. Knows no model."""
