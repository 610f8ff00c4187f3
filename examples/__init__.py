"""Programs that a newcomer can run and read."""
