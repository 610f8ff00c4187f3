"""An export as a job: its options, the facts that were found first, and its steps."""
