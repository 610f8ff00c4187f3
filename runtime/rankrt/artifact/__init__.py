"""What an artifact is: its manifest, where it comes from, and how it is described. Loads no graph."""
