"""The `rankrt` command: a thin skin over the library."""
