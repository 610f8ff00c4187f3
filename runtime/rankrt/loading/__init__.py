"""From an artifact to a running model. Choose a variant, prepare it for this host, open it."""
