"""Commands for the project's own upkeep."""
