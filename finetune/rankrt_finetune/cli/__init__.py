"""The commands: their options, the progress that they show, and what they say at the end."""
