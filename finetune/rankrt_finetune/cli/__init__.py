"""The commands `rankrt mine`, `rankrt teach` and `rankrt finetune`: options, progress, and what they say at the end."""
