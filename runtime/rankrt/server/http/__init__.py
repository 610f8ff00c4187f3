"""HTTP: routes, bodies, headers, errors and pages. Knows dialects, and the evaluator as one call."""
