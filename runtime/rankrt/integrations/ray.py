"""Ray Data over rankrt: a class for `Dataset.map_batches` that loads a model once in each actor.

`rankrt.server.ray_serve` is the deployment for Ray Serve.
"""

from typing import Any

from rankrt.integrations.columns import PairColumns
from rankrt.integrations.frameworks import framework, loaded
from rankrt.reranker import Reranker

with framework("ray", least="2.50", extra="ray"):
    import ray


class RankrtScorer:
    """Adds the score of each row's query and passage. Batches are dicts of arrays, frames of pandas or Arrow tables."""

    def __init__(
        self,
        model: str | Reranker,
        *,
        query_column: str = "query",
        passage_column: str = "passage",
        score_column: str = "score",
        normalize: bool = False,
        calibrated: bool = False,
        **load_options: Any,
    ) -> None:
        """Load a model, or the recipe of a reranker that was sent, on the CPUs or the GPU that Ray gave the actor.

        model         a folder that each node has, a hub id, or a loaded reranker, which each actor loads again
        normalize, calibrated  as in `Reranker.score`
        load_options  those of `Reranker.load`

        Raises InputError for options that cannot be honoured, and ArtifactError where the node lacks the model.
        """
        self.columns = PairColumns(
            query_column=query_column,
            passage_column=passage_column,
            score_column=score_column,
            normalize=normalize,
            calibrated=calibrated,
        )
        self.reranker = loaded(model, load_options if isinstance(model, Reranker) else given_by_ray() | load_options)

    def __call__(self, batch: Any) -> Any:
        """Return the batch with the column of scores, as float32. Raises InputError for a column that is missing."""
        return self.columns.added(self.reranker, batch)


def given_by_ray() -> dict[str, Any]:
    """Return the options of loading on what Ray gave this actor: a GPU, or else threads for its CPUs.

    Ray counts CPUs and binds no process to them, so each of several actors on a node would take all cores. It does not
    look for a GPU that a node claims to have: with "auto" the model would then run on the CPU, and no one would know.
    """
    if not ray.is_initialized() or ray.get_runtime_context().get_actor_id() is None:
        return {}
    resources = ray.get_runtime_context().get_assigned_resources()
    if resources.get("GPU"):
        return {"device": "cuda"}
    return {"device": "cpu", "n_threads": max(1, int(resources.get("CPU", 1)))}
