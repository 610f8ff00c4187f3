"""The command `rankrt serve`: options become Settings, everything that can be refused is, and uvicorn runs the rest."""

import asyncio
import logging
import os
import ssl
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import click
import uvicorn

from rankrt.backends.in_flight import N_IN_FLIGHT
from rankrt.cli.arguments import Choice, Command, Megabytes, Whole, argument, file_option, option
from rankrt.cli.options import Words, cutoff_layer, load_options, options_of
from rankrt.errors import DeviceError, InputError
from rankrt.host.cpu import usable_cores
from rankrt.host.host import this_host
from rankrt.llm.exits import check_cutoff
from rankrt.loading.open import find
from rankrt.server.http.app import App
from rankrt.server.http.connections import Connection, Gate, Listener, Loop, allow_connections, listen
from rankrt.server.http.draining import DrainingServer
from rankrt.server.keys import VARIABLE, ApiKeys
from rankrt.server.limits import Limits
from rankrt.server.models import LoadOptions, Served, name_of, rules_of
from rankrt.server.service import Service, Settings
from rankrt.server.telemetry.logs import log_to_stderr
from rankrt.server.telemetry.tracing import OtlpTracer, Tracer

# A thread that tokenizes keeps the interpreter for so long before others get it, and a request asks for it about six
# times on its way, a run three times: with Python's own 5 ms a request waits for 30.
_SWITCH_INTERVAL_S = 0.0002

# A request may use its whole time when the server is told to stop, and then be answered.
_DRAIN_BEYOND_TIMEOUT_S = 5.0

_logger = logging.getLogger("rankrt.server")


def _read_workers(text: str) -> int | None:
    """Return the number of processes; None is auto."""
    return None if text == "auto" else Whole(0).convert(text, None, None)


def _read_url(text: str) -> str:
    if not _is_http(text):
        raise click.BadParameter(f"{text!r} is not an address such as http://host:4318/v1/traces")
    return text


def _read_origin(text: str) -> str:
    """Return an origin as browsers send it: scheme, host and port. With a path it would never be the same."""
    if text != "*" and not (_is_http(text) and text.count("/") == 2):
        raise click.BadParameter(f"{text!r} is not an origin such as https://example.com, nor *")
    return text


def _is_http(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is not a number
        return False


_LIMITS = {
    "timeout_ms": Words(help="Milliseconds until a request is answered or refused.", metavar="N"),
    "max_queue_tokens": Words(help="Most tokens that wait, of all requests together.", metavar="N"),
    "max_documents": Words(help="Most documents of one request.", metavar="N"),
    "max_body_bytes": Words(help="Largest body of a request.", metavar="MB"),
    "max_inflight_bytes": Words(help="Largest sum of the bodies of all requests in flight.", metavar="MB"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """Where the server listens, and with which certificate."""

    host: str
    port: int
    ssl_certfile: Path | None
    ssl_keyfile: Path | None


@click.command("serve", cls=Command, epilog="Example: rankrt serve ./bge-m3 --port 8080")
@argument(
    "models",
    nargs=-1,
    required=True,
    metavar="MODEL...",
    help="An artifact's folder or a Hub id. NAME=MODEL names it; MODEL@int8 serves that precision of it.",
)
@option(
    "--host",
    group="Network",
    default="127.0.0.1",
    metavar="H",
    help="Address to listen on. 127.0.0.1 is this machine only, 0.0.0.0 every interface.",
)
@option(
    "--port",
    group="Network",
    type=Whole(0, 65535),
    default=8080,
    metavar="N",
    help="Port to listen on; 0 takes a free one.",
)
@file_option("--ssl-certfile", type=Path, group="Network", help="Serve TLS with this certificate (PEM).")
@file_option("--ssl-keyfile", type=Path, group="Network", help="The certificate's key (PEM, without a password).")
@file_option(
    "--api-key-file",
    type=Path,
    group="Access",
    help=f"Answer only requests with one of these keys, one a line. {VARIABLE} holds a single key.",
)
@option(
    "--cors-origin",
    "cors_origins",
    group="Access",
    multiple=True,
    type=_read_origin,
    metavar="O",
    help="Let pages of this origin send requests, such as https://example.com; * is all. May be given again.",
)
@load_options(without=["instruction_set", "n_threads", "instruction", "prompt_name"])
@cutoff_layer
@option(
    "--workers",
    group="Workers",
    type=_read_workers,
    default="auto",
    metavar="N",
    help="Processes that score; 0 scores in the server itself. auto is one for every 16 cores, and one for a GPU.",
)
@option(
    "--threads",
    group="Workers",
    type=Whole(),
    metavar="N",
    help="Threads of all workers together.",
    show_default="the physical cores that may be used",
)
@option(
    "--max-batch-tokens",
    group="Workers",
    type=Whole(),
    metavar="N",
    help="Most tokens that run together.",
    show_default="the planner's choice",
)
@option(
    "--cache-mb",
    "cache_bytes",
    group="Workers",
    type=Megabytes(0),
    default="0",
    metavar="MB",
    help="Memory for scores to answer the same pair again.",
)
@options_of("Limits", Limits, _LIMITS)
@option(
    "--max-connections",
    group="Limits",
    type=Whole(),
    metavar="N",
    help="Most connections that are open at once.",
    show_default=f"{Limits().max_connections:,}, or what the limit of open files allows",
)
@option(
    "--drain-s",
    group="Limits",
    type=Whole(),
    metavar="S",
    help="Seconds to finish running requests on shutdown.",
    show_default="5 s more than the timeout",
)
@option(
    "--log-format",
    group="Observability",
    type=Choice(["auto", "json", "text"]),
    default="auto",
    help="Format of the log. auto is text on a terminal, else json.",
)
@option(
    "--log-level",
    group="Observability",
    type=Choice(["debug", "info", "warning", "error"]),
    default="info",
    help="Lowest level that is logged.",
)
@option(
    "--otlp-endpoint",
    group="Observability",
    type=_read_url,
    metavar="URL",
    help="Send traces there, such as http://host:4318/v1/traces.",
)
def serve(
    models: Sequence[str],
    host: str,
    port: int,
    ssl_certfile: Path | None,
    ssl_keyfile: Path | None,
    api_key_file: Path | None,
    cors_origins: Sequence[str],
    load: Mapping[str, Any],
    cutoff_layer: int | None,
    workers: int | None,
    threads: int | None,
    max_batch_tokens: int | None,
    cache_bytes: int,
    limits: Mapping[str, Any],
    max_connections: int | None,
    drain_s: int | None,
    log_format: str,
    log_level: str,
    otlp_endpoint: str | None,
) -> None:
    """Serve until a signal ends it."""
    if sys.platform == "win32":
        raise DeviceError("rankrt serve needs Linux or macOS; on Windows start it in WSL2, or use rankrt.Reranker")
    log_to_stderr(_log_format(log_format), log_level)
    network = Network(host=host, port=port, ssl_certfile=ssl_certfile, ssl_keyfile=ssl_keyfile)
    settings = Settings(
        models=[_served(text) for text in models],
        load=_load_options({**load, "cutoff_layer": cutoff_layer}),
        limits=Limits(**limits),
        n_workers=workers,
        n_threads=threads,
        cache_bytes=cache_bytes,
        max_batch_tokens=max_batch_tokens,
        keys=ApiKeys.read(api_key_file),
        cors_origins=cors_origins,
    )
    # Before anything is started, so that a wrong option is one sentence.
    _check_limits(settings.limits)
    _check_tls(network)
    _check_threads(settings)
    settings = _check_models(settings)
    n_threads = settings.n_threads or usable_cores().n
    n_connections = allow_connections(max_connections, n_threads)
    settings = replace(settings, limits=replace(settings.limits, max_connections=n_connections))
    with closing(Gate(n_connections, greets=ssl_certfile is None)) as gate:
        listeners = listen(host, port, gate)
        tracer = OtlpTracer(otlp_endpoint) if otlp_endpoint else None
        _serve(network, settings, gate, listeners, tracer, drain_s)


def _serve(
    network: Network,
    settings: Settings,
    gate: Gate,
    listeners: Sequence[Listener],
    tracer: Tracer | None,
    drain_s: int | None,
) -> None:
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    address = _address(network, listeners[0])
    service = Service(
        settings,
        tracer=tracer,
        on_ready=lambda: _logger.info("ready at %s", address),
        on_failure=lambda: setattr(server, "should_exit", True),
    )
    config = _uvicorn(network, App(service), settings.limits, gate)
    longest_s = drain_s or settings.limits.timeout_ms / 1000 + _DRAIN_BEYOND_TIMEOUT_S
    server = DrainingServer(config, service, drain_s=longest_s)
    if not settings.keys and network.host not in ("127.0.0.1", "::1", "localhost"):
        _logger.warning("no API key is set: anyone who can reach %s can send requests", network.host)
    _logger.info("running on %s (a page to try it on; %s/docs describes the paths)", address, address)
    with asyncio.Runner(loop_factory=Loop) as runner:
        runner.run(server.serve(sockets=list(listeners)))
    if service.error is not None:
        raise service.error


def _load_options(load: Mapping[str, Any]) -> LoadOptions:
    """Return how models are loaded. An option that is not a field of `LoadOptions` is one of the rules."""
    own = {field.name for field in fields(LoadOptions)}
    rules = {name: value for name, value in load.items() if name not in own}
    return LoadOptions(**{name: value for name, value in load.items() if name in own}, rules=rules)


def _served(text: str) -> Served:
    served, (name, equals, _) = Served.parse(text), text.partition("=")
    if (equals and not name) or not served.source:
        raise InputError(f"MODEL {text} has an empty name or an empty model; write NAME=MODEL")
    return served


def _check_limits(limits: Limits) -> None:
    """Raise InputError for a body that may be larger than all bodies together."""
    if limits.max_body_bytes > limits.max_inflight_bytes:
        raise InputError(
            f"--max-body-mb {limits.max_body_bytes >> 20} is more than --max-inflight-mb"
            f" {limits.max_inflight_bytes >> 20}, the limit of all bodies together; raise that too"
        )


def _check_tls(network: Network) -> None:
    """Raise InputError unless the certificate and the key can be read and belong together."""
    certificate, key = network.ssl_certfile, network.ssl_keyfile
    if certificate is None and key is None:
        return
    if certificate is None or key is None:
        raise InputError("--ssl-certfile and --ssl-keyfile belong together; give both or neither")
    for name, path in (("--ssl-certfile", certificate), ("--ssl-keyfile", key)):
        try:
            path.read_bytes()
        except OSError as error:
            raise InputError(f"{name} {path} cannot be read: {error.strerror}") from error
    try:
        # OpenSSL would ask for the password of a key on the terminal, where a server has no reader.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password=lambda: "")
    except (ssl.SSLError, ValueError) as error:
        reason = "they do not match" if "KEY_VALUES_MISMATCH" in str(error) else "one is not PEM, or has a password"
        raise InputError(f"--ssl-certfile {certificate} and --ssl-keyfile {key} cannot be used: {reason}") from error


def _check_threads(settings: Settings) -> None:
    """Raise InputError for more threads than there are processors, or more workers than threads."""
    n_processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if settings.n_threads is not None and settings.n_threads > n_processors:
        raise InputError(f"--threads {settings.n_threads} is more than the {n_processors} processors of this host")
    n_threads = settings.n_threads or usable_cores().n
    if settings.n_workers is not None and settings.n_workers > n_threads:
        raise InputError(
            f"--workers {settings.n_workers} is more than the {n_threads} threads (--threads); each worker needs one"
        )


def _check_models(settings: Settings) -> Settings:
    """Raise what loading the models would raise, as far as that is quickly found; return settings for their devices."""
    host, names = this_host(), set[str]()
    found = [find(served.source, served.options(settings.load), host) for served in settings.models]
    for served, placement in zip(settings.models, found, strict=True):
        artifact = placement.artifact
        check_cutoff(settings.load.cutoff_layer, placement.variant)
        artifact.check_sizes([artifact.manifest.tokenizer, *placement.files])
        rules_of(artifact, settings.load)
        if (name := name_of(artifact, served)) in names:
            raise InputError(f"two models are called {name}; give one another name: NAME=MODEL")
        names.add(name)
    return _for_gpu(settings) if any(placement.device.is_gpu for placement in found) else settings


def _for_gpu(settings: Settings) -> Settings:
    """Have one worker, as each has the weights in the GPU's memory, and a lane for each run that may be in flight."""
    n_threads = max(N_IN_FLIGHT, settings.n_threads or usable_cores().n)
    return replace(settings, n_workers=1 if settings.n_workers is None else settings.n_workers, n_threads=n_threads)


def _log_format(asked: str) -> Literal["json", "text"]:
    if asked == "auto":
        return "text" if sys.stderr is not None and sys.stderr.isatty() else "json"
    return "json" if asked == "json" else "text"


def _address(network: Network, listener: Listener) -> str:
    """Return where a browser on this host finds the server."""
    host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(network.host, network.host)
    host = f"[{host}]" if ":" in host and not host.startswith("[") else host
    return f"{'https' if network.ssl_certfile else 'http'}://{host}:{listener.getsockname()[1]}"


def _uvicorn(network: Network, app: App, limits: Limits, gate: Gate) -> uvicorn.Config:
    return uvicorn.Config(
        app.starlette(),
        http=partial(Connection, gate=gate, limits=limits),  # type: ignore[arg-type]  # it is called, whatever it is
        h11_max_incomplete_event_size=limits.max_header_bytes,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=75,  # longer than what load balancers keep, which is usually 60 s
        ssl_certfile=network.ssl_certfile,
        ssl_keyfile=network.ssl_keyfile,
    )
