"""Measures rankrt beside the engines a user would pick: same text, same threads, in turn, quality beside speed."""
