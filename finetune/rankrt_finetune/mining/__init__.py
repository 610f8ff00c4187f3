"""Hard negatives: passages of a corpus that look like answers to a query and are not. Knows how they are found."""
