"""Which rows run next, and which scores are known already. Knows no HTTP and no process."""
