"""How a linear layer and a table of vectors are stored and computed, one file each."""
