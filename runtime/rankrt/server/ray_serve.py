"""Ray Serve: the server as a deployment, whose replicas Serve starts, moves and counts.

A replica is a whole server without its sockets. So requests that come together run together by rankrt's own queue,
which knows their tokens, deadlines and priorities; `@serve.batch` would wait for a number of requests instead.
"""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from starlette.applications import Starlette

from rankrt.arrays import Float32Array
from rankrt.errors import InputError, RankrtError
from rankrt.integrations.frameworks import framework
from rankrt.integrations.ray import given_by_ray
from rankrt.ranking import Hit
from rankrt.scale import Scale, kind_of
from rankrt.server.dialects import rank
from rankrt.server.evaluator import Answer, Ask
from rankrt.server.http.app import App
from rankrt.server.models import LoadOptions, Served
from rankrt.server.service import Service, Settings
from rankrt.text.pairs import Pair

with framework("ray", least="2.50", extra="ray-serve"):
    from ray import serve

# Serve's own default of 5 requests at once would leave rankrt's queue nothing to put together.
_ONGOING = 256
# A replica is added when each has so many requests on average: two that run, and two that wait their turn.
_AUTOSCALING = {"min_replicas": 1, "max_replicas": 8, "target_ongoing_requests": 4}

# A request may use its whole time when Serve takes its replica away, and then be answered. That is 60 s by default, and
# Serve would kill the replica after 20 s.
_DRAIN_BEYOND_TIMEOUT_S = 5.0


def application(
    models: str | Sequence[str],
    *,
    settings: Mapping[str, Any] | None = None,
    autoscaling_config: Mapping[str, Any] | None = None,
    num_replicas: int | None = None,
    ray_actor_options: Mapping[str, Any] | None = None,
    **load_options: Any,
) -> Any:
    """Return an application for `serve.run`, with the HTTP paths of `rankrt serve`.

    models              what each replica serves: folders that the nodes have, or hub ids; NAME=MODEL names one
    settings            other fields of `rankrt.server.service.Settings`, such as cache_bytes and limits
    autoscaling_config  Serve's; by default 1 to 8 replicas, with 4 requests at each
    num_replicas        a fixed number instead
    ray_actor_options   what a replica takes; as many threads as its num_cpus, 1 by default, or a GPU
    load_options        those of `rankrt.server.models.LoadOptions`, as max_length and precision

    A handle has `rank` and `score`, too: `await handle.rank.remote(query, documents, top_n=3)`.
    """
    if num_replicas is not None and autoscaling_config is not None:
        raise InputError("num_replicas is a fixed number and autoscaling_config a range; give one of them")
    given = Settings(
        models=[Served.parse(text) for text in ([models] if isinstance(models, str) else models)],
        load=LoadOptions(**load_options),
        **{"n_workers": 0, **(settings or {})},  # Serve itself starts a replica again that dies
    )
    scale = {"autoscaling_config": {**_AUTOSCALING, **(autoscaling_config or {})}}
    deployment = serve.deployment(
        name="rankrt",
        max_ongoing_requests=_ONGOING,
        graceful_shutdown_timeout_s=given.limits.timeout_ms / 1000 + _DRAIN_BEYOND_TIMEOUT_S,
        ray_actor_options={"num_cpus": 1, **(ray_actor_options or {})},
        **({"num_replicas": num_replicas} if num_replicas is not None else scale),
    )
    return deployment(serve.ingress(lambda: served(given))(Replica)).bind()


def build(args: Mapping[str, Any]) -> Any:
    """Return the application for `serve run rankrt.server.ray_serve:build models=./bge-m3`, or from a YAML's args."""
    return application(**args)


def served(settings: Settings) -> Starlette:
    """Return a replica's application. It has started when its models are loaded; `state.service` is its service."""
    on_ray = given_by_ray()
    ready = asyncio.Event()
    load = (
        settings.load if settings.load.device != "auto" else replace(settings.load, device=on_ray.get("device", "auto"))
    )
    own = replace(settings, load=load, n_threads=settings.n_threads or on_ray.get("n_threads"))
    service = Service(own, on_ready=ready.set, on_failure=ready.set)
    app = App(service).starlette()
    app.state.service, begun = service, app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncGenerator[None]:
        async with begun(app):
            await ready.wait()
            if service.error is not None:
                raise service.error
            yield

    app.router.lifespan_context = lifespan
    return app


class Replica:
    """A replica of the deployment: what its handle calls, beside HTTP. Serve gives it `app`."""

    app: Starlette

    async def score(
        self, pairs: Sequence[Pair], *, normalize: bool = False, calibrated: bool = False, **ask: Any
    ) -> Float32Array:
        """Return scores as `Reranker.score`. Other options are fields of `Ask`, such as timeout_ms and priority."""
        answer = await self._answer(pairs, calibrated, ask)
        return _scale(answer, normalize, calibrated).scores(answer.logits)

    async def rank(
        self,
        query: str,
        documents: Sequence[str],
        *,
        top_n: int | None = None,
        normalize: bool = False,
        calibrated: bool = False,
        **ask: Any,
    ) -> list[Hit]:
        """Return the best documents as `Reranker.rank`. Other options are fields of `Ask`."""
        if not query.strip():
            raise InputError("the query is empty: there is nothing to rank by")
        answer = await self._answer([(query, document) for document in documents], calibrated, ask)
        scale = _scale(answer, normalize, calibrated)
        scores = scale.scores(answer.logits)
        return [
            Hit(
                index=i,
                score=float(scores[i]),
                document=documents[i],
                truncated=bool(answer.truncated[i]),
                score_kind=scale.kind,
            )
            for i in rank(answer, top_n)
        ]

    def check_health(self) -> None:
        """Raise what keeps this replica from scoring; Serve then replaces it."""
        service: Service = self.app.state.service
        if service.state == "unavailable":
            raise service.scheduler.outage or RankrtError("no worker can score")

    async def _answer(self, pairs: Sequence[Pair], calibrated: bool, ask: Mapping[str, Any]) -> Answer:
        service: Service = self.app.state.service
        with service.answering():
            return await service.evaluator.evaluate(Ask(pairs=pairs, is_calibrated=calibrated, **ask))


def _scale(answer: Answer, normalize: bool, calibrated: bool) -> Scale:
    kind = kind_of(normalize=normalize, calibrated=calibrated)
    return answer.scale if kind == "probability" else Scale(kind=kind)
