"""A multilingual cross-encoder of less than 8 MB that really ranks, and the code that makes it.

    python -m tiny_reranker train --data DATA --out tiny_reranker/checkpoint
    python -m tiny_reranker evaluate --data DATA tiny_reranker/checkpoint

Reading order: corpus, vocabulary, construction, batches, training, files, ranking, evaluation.
"""
