"""Mining, teacher scores, training and evaluation of rerankers, over libraries that do this well."""
