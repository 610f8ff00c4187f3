"""A process that scores chunks for another one. It gets a reranker, then pairs, and answers logits, all by pickle.

It ends when its standard input does: a parent that is killed leaves no process.
"""

import pickle
import signal
import sys

from rankrt.errors import RankrtError


def main() -> None:
    """Answer until the parent has nothing more to ask."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all of a terminal's processes; the parent ends them
    asks, answers = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr  # a library that prints would break the answers
    reranker = pickle.load(asks)
    while True:
        try:
            pairs = pickle.load(asks)
        except EOFError:
            return
        try:
            found = reranker.evaluate(pairs)
            answer: object = (found.logits, found.truncated)
        except RankrtError as error:
            answer = error
        pickle.dump(answer, answers)
        answers.flush()


if __name__ == "__main__":
    main()
