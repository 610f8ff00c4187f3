"""Scores of earlier rows, bounded in bytes.

A score depends on its row only, and a row's digest covers the artifact, the variant and every id. So a known score is
always right. Knows no threads: its user holds the lock.
"""

import hashlib
from collections import OrderedDict

from rankrt.arrays import Int32Array

# A digest of 32 bytes, a float and their places in an OrderedDict: 192 to 235 bytes by tracemalloc, for 3,000 to
# 350,000 entries in CPython 3.11.
ENTRY_BYTES = 240


def digest_of(salt: bytes, ids: Int32Array, passage_start: int) -> bytes:
    """Return the digest of a row, which no other row has; `salt` names the artifact and the variant."""
    found = hashlib.blake2b(salt, digest_size=32)
    found.update(passage_start.to_bytes(4, "little"))
    found.update(ids.tobytes())
    return found.digest()


class ScoreCache:
    """The logits of the most recently used rows."""

    def __init__(self, n_bytes: int) -> None:
        self.n_most = n_bytes // ENTRY_BYTES
        self.n_hits = 0
        self.n_misses = 0
        self._logits: OrderedDict[bytes, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._logits)

    @property
    def n_bytes(self) -> int:
        """The approximate memory of the entries."""
        return len(self._logits) * ENTRY_BYTES

    def get(self, digest: bytes) -> float | None:
        """Return the logit of a row, if it is known."""
        logit = self._logits.get(digest)
        if logit is None:
            self.n_misses += 1
            return None
        self.n_hits += 1
        self._logits.move_to_end(digest)
        return logit

    def put(self, digest: bytes, logit: float) -> None:
        """Keep a logit. If there is no room, drop the least recently used one."""
        if not self.n_most:
            return
        self._logits[digest] = logit
        self._logits.move_to_end(digest)
        if len(self._logits) > self.n_most:
            self._logits.popitem(last=False)
