"""HTTP: routes, bodies, headers, errors and pages. Knows dialects, and the engine as one call."""
