"""Rank documents that are longer than a row, by windows, and show the window that counted.

python examples/long_documents.py ./bge-m3
"""

import sys

from rankrt import Reranker

QUERY = "where do giant pandas live?"
FILLER = "This chapter describes how the committee met, what it discussed and who took the minutes. "
ANSWER = "Giant pandas live in the mountains of central China. "
DOCUMENTS = [FILLER * 60, FILLER * 40 + ANSWER + FILLER * 40]


def main(model: str) -> None:
    with Reranker.load(model) as reranker:
        # By default a document is cut: the answer stands after the first 512 tokens, so it is not seen.
        for hit in reranker.rank(QUERY, DOCUMENTS):
            print(f"cut      {hit.score:8.3f}  document {hit.index}, truncated={hit.truncated}")

        # With windows the best one counts, and `span` says where it stands in the document.
        for hit in reranker.with_rules(long_documents="chunk").rank(QUERY, DOCUMENTS):
            assert hit.span is not None, "windows have a place"
            start, end = hit.span
            found = "with the answer" if ANSWER.strip() in hit.document[start:end] else "without it"
            print(f"windows  {hit.score:8.3f}  document {hit.index}, characters {start} to {end}, {found}")


if __name__ == "__main__":
    main(*sys.argv[1:])
