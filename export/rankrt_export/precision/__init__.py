"""How a linear layer and a table of vectors are stored and computed. A file's `METHODS` are what it adds."""
