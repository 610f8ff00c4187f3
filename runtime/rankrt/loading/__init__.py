"""From an artifact to a model that runs: choose a variant, prepare it for this host, open it."""
