"""Scoring files of any size: pairs are read, scored and written chunk by chunk, and what was scored survives a kill.

chunks      pairs as rows of text formats
columns     pairs as columns of Parquet and Arrow
selection   the pairs that are written: all, those that reach a threshold, the best of each query
scoring     chunks to logits, here or in several processes
cluster     chunks to logits on the nodes of a Ray cluster
checkpoint  the logits so far, in a file beside the output
job         the order of the steps, and what is written
"""
