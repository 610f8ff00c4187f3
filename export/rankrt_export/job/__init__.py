"""An export as a job: what was asked for, what was found out before, and each step that is done for it."""
