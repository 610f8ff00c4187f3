"""The floating-point operations and the bytes that an encoder's score needs, by its shape."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The numbers of config.json that give the operations of a row."""

    n_layers: int
    hidden: int
    intermediate: int

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Self:
        """Read them. Raises KeyError for a model with other fields."""
        return cls(
            n_layers=config["num_hidden_layers"], hidden=config["hidden_size"], intermediate=config["intermediate_size"]
        )

    def operations(self, n_tokens: int) -> float:
        """Return the operations that a row's score needs.

        The last layer computes keys and values for all tokens, the rest for one.
        """
        return (self.n_layers - 1) * self._layer(n_tokens, n_tokens) + self._layer(1, n_tokens) + 2 * self.hidden**2

    @property
    def n_bytes(self) -> float:
        """The bytes of all layers' weights in fp32. Every run reads them once."""
        return 4.0 * self.n_layers * (4 * self.hidden**2 + 2 * self.hidden * self.intermediate)

    def _layer(self, n_queries: int, n_tokens: int) -> float:
        keys_and_values = 4 * n_tokens * self.hidden**2
        query_and_output = 4 * n_queries * self.hidden**2
        attention = 4 * n_queries * n_tokens * self.hidden
        return keys_and_values + query_and_output + attention + 4 * n_queries * self.hidden * self.intermediate
