"""Examples to train and evaluate with: how files of them are read, checked and split. Knows no model."""
