"""The commands of fine-tuning: their options, progress, and what they say at the end."""
