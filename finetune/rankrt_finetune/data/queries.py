"""What makes two texts the same, and which queries are held out. Knows texts, no examples."""

import hashlib
import unicodedata


def digest(text: str) -> int:
    """Return 64 bits that are the same for texts that differ in case, width of letters and white space only."""
    plain = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return _hash(plain)


def is_held_out(query: str, share: float, seed: int) -> bool:
    """Tell whether a query is one of the share that is held out. It depends on the query and the seed only."""
    return _hash(f"{seed} {digest(query)}") < share * 2**64


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
