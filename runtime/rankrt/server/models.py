"""The served models, by the names that requests call them by. They can be replaced while requests run."""

import asyncio
import hashlib
import itertools
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import rankrt.options
from rankrt.artifact.manifest import Artifact, Variant
from rankrt.artifact.precisions import PRECISIONS, Precision
from rankrt.errors import ArtifactError, RankrtError
from rankrt.host.host import this_host
from rankrt.host.memory import release_free_memory
from rankrt.kernels import kernels_in_use
from rankrt.llm.exits import check_cutoff
from rankrt.loading.open import find, open_pair_tokenizer, rules_for
from rankrt.loading.placement import Placement
from rankrt.server.failures import Failure
from rankrt.server.workers.local import ModelFiles, ServedModel, Worker, WorkerLost
from rankrt.text.options import Rules
from rankrt.text.pairs import PairTokenizer

_logger = logging.getLogger("rankrt.server")


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What to serve: an artifact, the name that requests call it by, and its precision.

    Without a name it has the artifact's own, and without a precision that of the server's options.
    """

    source: str
    name: str | None = None
    precision: Precision | None = None

    @classmethod
    def parse(cls, text: str) -> "Served":
        """Read NAME=SOURCE@PRECISION, or without its first or last part. Another `@` belongs to the source."""
        precision = next((known for known in PRECISIONS if text.endswith(f"@{known}")), None)
        text = text.removesuffix(f"@{precision}")
        name, equals, source = text.partition("=")
        is_named = bool(equals and name and "/" not in name)
        return cls(source=source if is_named else text, name=name if is_named else None, precision=precision)

    def options(self, options: "LoadOptions") -> "LoadOptions":
        """Return the server's options with this model's own."""
        return options if self.precision is None else replace(options, precision=self.precision)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions(rankrt.options.LoadOptions):
    """How models are loaded; see `Reranker.load`. `rules` are fields of `Rules`."""

    max_length: int | None = None
    cutoff_layer: int | None = None
    rules: Mapping[str, Any] = field(default_factory=dict)


@dataclass(eq=False, slots=True, kw_only=True)
class Model:
    """A model that is ready: its tokenizer here, its graph in the workers. `n_users` requests are using it."""

    name: str
    artifact: Artifact
    variant: Variant
    tokenizer: PairTokenizer
    rules: Rules
    served: ServedModel
    loaded_at: int
    n_users: int = 0
    is_retired: asyncio.Event = field(default_factory=asyncio.Event)
    _by_layer: dict[int, ServedModel] = field(default_factory=dict)

    @property
    def limit(self) -> int:
        """The most tokens of a row that the model can take, on the device where it is."""
        return min(
            self.artifact.manifest.max_length, self.served.capacity.longest_row or self.artifact.manifest.max_length
        )

    @property
    def is_calibrated(self) -> bool:
        """Whether the artifact has a calibration for the scores of the layer that the server reads them from."""
        calibration = self.artifact.calibration
        return calibration is not None and calibration.cutoff_layer == self.layer(None)

    def layer(self, asked: int | None) -> int | None:
        """Return the layer whose score a request gets: the one that it asks for, or the server's; None is the last."""
        return asked if asked is not None else next(iter(self.served.exits), None)

    def up_to(self, layer: int | None) -> ServedModel:
        """Return the model up to a layer; None is the server's choice. Raises InputError for one that is not an exit.

        For the queue each layer is a model of its own: no runs, scores or paces are shared. The server's own layer is
        the last one, unless it was told another.
        """
        own = self.served.exits or tuple(end.layer for end in self.variant.exits[-1:])
        if layer is None or own == (layer,):
            return self.served
        if layer not in self._by_layer:
            check_cutoff(layer, self.variant)
            salt = hashlib.sha256(self.served.salt + f" {layer}".encode()).digest()
            self._by_layer[layer] = replace(self.served, salt=salt, exits=(layer,))
        return self._by_layer[layer]


class Models:
    """The models by name. One event loop uses it; loading happens in threads."""

    def __init__(
        self,
        served: Sequence[Served],
        options: LoadOptions,
        workers: Sequence[Worker],
        *,
        fail: Callable[[str, RankrtError], None],
        abandon: Callable[[str, RankrtError], None],
        forget: Callable[[str], None],
    ) -> None:
        """Take what a scheduler does with a model, named by its key.

        `fail` fails the requests that wait for it, `abandon` also those that will; `forget` keeps nothing of it.
        """
        self._served = served
        self._options = options
        self._workers = workers
        self._fail = fail
        self._abandon = abandon
        self._forget = forget
        self._models: dict[str, Model] = {}
        self._keys = (f"{number}" for number in itertools.count())

    def __iter__(self) -> Iterator[Model]:
        return iter(self._models.values())

    @property
    def is_ready(self) -> bool:
        """Whether all models are loaded."""
        return bool(self._models)

    @contextmanager
    def use(self, name: str | None) -> Iterator[Model]:
        """Return the model of that name and keep it loaded. Raises a Failure if there is none.

        While only one is served, it answers to every name: clients have names built in that are not known here.
        """
        model = self._find(name)
        model.n_users += 1
        try:
            yield model
        finally:
            model.n_users -= 1
            if not model.n_users and model not in self._models.values():
                model.is_retired.set()

    async def load(self, warm_up: Callable[[Model], None]) -> None:
        """Load what changed since the last time, and replace it when it is warm. Requests still run meanwhile.

        If one cannot be loaded, all of before stay, and nothing of the others is kept.
        """
        found: list[Model] = []
        try:
            for served in self._served:
                found.append(await asyncio.to_thread(self._load, served, warm_up))
            names = [model.name for model in found]
            if twice := [name for name in names if names.count(name) > 1]:
                raise ArtifactError(f"two models are called {twice[0]}; give one another name: NAME=PATH")
        except BaseException:
            for model in found:
                if model not in self._models.values():
                    await asyncio.to_thread(self._unload, model.served.key)
            raise
        old, self._models = self._models, dict(zip(names, found, strict=True))
        await asyncio.gather(*(self._retire(model) for model in old.values() if model not in found))
        # Loading and releasing a tokenizer left up to 20 MB free in each thread that did it.
        old.clear()
        await asyncio.to_thread(release_free_memory)

    def _find(self, name: str | None) -> Model:
        if not self._models:
            raise Failure("unavailable", "the model is being loaded", retry_after_s=5.0)
        if name in self._models:
            return self._models[name]
        if named := [model for model in self._models.values() if model.artifact.manifest.source.id == name]:
            return named[0]
        if name is None or len(self._models) == 1:
            return next(iter(self._models.values()))
        raise Failure("unknown_model", f"no model is called {name[:100]}; there are {', '.join(self._models)}")

    def _load(self, served: Served, warm_up: Callable[[Model], None]) -> Model:
        options = served.options(self._options)
        placement = find(served.source, options, this_host())
        artifact, variant = placement.artifact, placement.variant
        check_cutoff(options.cutoff_layer, variant)
        name = name_of(artifact, served)
        known = self._models.get(name)
        if known is not None and _content(known.artifact, known.variant) == _content(artifact, variant):
            return known
        rules, key = rules_of(artifact, options), next(self._keys)
        tokenizer = open_pair_tokenizer(placement, prepare=options.prepare)
        try:
            model = Model(
                name=name,
                artifact=artifact,
                variant=variant,
                tokenizer=tokenizer,
                rules=rules,
                served=self._load_in_workers(key, placement, options),
                loaded_at=int(time.time()),
            )
            rules.check(artifact.manifest.template, model.limit)
            if known is not None and self._is_lost(known):
                self._fail(known.served.key, _replaced(name))  # or the first rows would wait for them
            warm_up(model)
        except BaseException:
            self._unload(key)
            raise
        shown = f"{variant.name} with {kernels_in_use()}" if variant.key.needs_kernels else variant.name
        _logger.info("%s is ready: %s", name, shown, extra={"model": name, "artifact": artifact.identity})
        return model

    def _load_in_workers(self, key: str, placement: Placement, options: LoadOptions) -> ServedModel:
        """Load a model in all workers side by side."""
        artifact, variant = placement.artifact, placement.variant
        files = ModelFiles(
            key=key,
            artifact=replace(artifact, folder=artifact.folder.resolve()),  # a link may lead elsewhere later
            variant=variant,
            device=placement.device,
            options=options,
        )
        with ThreadPoolExecutor(len(self._workers)) as pool:
            capacities = list(pool.map(lambda worker: worker.load(files), self._workers))
        salt = hashlib.sha256(f"{key} {artifact.identity} {variant.name}".encode()).digest()
        layer = options.cutoff_layer
        return ServedModel(key=key, salt=salt, capacity=capacities[0], exits=() if layer is None else (layer,))

    async def _retire(self, model: Model) -> None:
        """Release a model when the last request that uses it has been answered."""
        key = model.served.key
        # A worker that lacks it cannot help those who still use it, and need not load it any more to be here.
        for worker in self._workers:
            if not worker.can_run(key):
                await asyncio.to_thread(worker.unload, key)
        if self._is_lost(model):
            self._abandon(key, _replaced(model.name))
        if model.n_users:
            await model.is_retired.wait()
        await asyncio.to_thread(self._unload, key)
        _logger.info("%s of before was released", model.name)

    def _is_lost(self, model: Model) -> bool:
        return not any(worker.can_run(model.served.key) for worker in self._workers)

    def _unload(self, key: str) -> None:
        for worker in self._workers:
            worker.unload(key)
        self._forget(key)


def _replaced(name: str) -> WorkerLost:
    return WorkerLost(f"{name} was replaced while no worker could score; ask again")


def _content(artifact: Artifact, variant: Variant) -> tuple[object, ...]:
    """Return what makes a model another one than before."""
    return artifact.identity, artifact.calibration, variant


def name_of(artifact: Artifact, served: Served) -> str:
    """Return what a model is called: as it was named, or else as on the hub, or after the folder that is served.

    If the command line gives it a precision, that is a part of the name: one artifact may be served in several.
    The manifest calls one that was exported from a folder after that folder, often `checkpoint` or `model`.
    """
    if served.name is not None:
        return served.name
    exported, folder = artifact.manifest.source.id, Path(os.path.abspath(Path(served.source).expanduser())).name
    name = artifact.manifest.name if "/" in exported else folder
    return name if served.precision is None else f"{name}@{served.precision}"


def rules_of(artifact: Artifact, options: LoadOptions) -> Rules:
    """Return the rules of a served model. Raises InputError if it cannot keep them."""
    rules = rules_for(artifact, {"max_length": options.max_length, **options.rules})
    rules.check(artifact.manifest.template, artifact.manifest.max_length)
    return rules
