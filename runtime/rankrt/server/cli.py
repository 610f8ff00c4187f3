"""The command `rankrt serve`: options become Settings, everything that can be refused is, and uvicorn runs the rest."""

import argparse
import asyncio
import logging
import math
import os
import ssl
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import uvicorn

from rankrt.artifact.manifest import PRECISIONS
from rankrt.backends.in_flight import N_IN_FLIGHT
from rankrt.errors import InputError
from rankrt.host.cpu import usable_cores
from rankrt.host.device import DEVICE_HELP
from rankrt.host.host import this_host
from rankrt.loading.open import find
from rankrt.server.http.app import App
from rankrt.server.http.connections import Connection, Gate, Listener, Loop, allow_connections, listen
from rankrt.server.http.draining import DrainingServer
from rankrt.server.keys import VARIABLE, ApiKeys
from rankrt.server.limits import Limits
from rankrt.server.models import LoadOptions, Served, check_servable, name_of, rules_of
from rankrt.server.service import Service, Settings
from rankrt.server.telemetry.logs import log_to_stderr
from rankrt.server.telemetry.tracing import OtlpTracer

# A thread that tokenizes keeps the interpreter for so long before others get it, and a request asks for it about six
# times on its way, a run three times: with Python's own 5 ms a request waits for 30.
_SWITCH_INTERVAL_S = 0.0002

# A request may use its whole time when the server is told to stop, and then be answered.
_DRAIN_BEYOND_TIMEOUT_S = 5.0

_logger = logging.getLogger("rankrt.server")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    limits = Limits()
    parser.add_argument(
        "models", nargs="+", metavar="MODEL", help="an artifact's folder or a hub id, or NAME=MODEL to name it"
    )
    network = parser.add_argument_group("network")
    network.add_argument("--host", default="127.0.0.1", help="default: 127.0.0.1, this machine only")
    network.add_argument("--port", type=_port, default=8080, help="default: 8080; 0 takes a free one")
    network.add_argument("--ssl-certfile", type=Path, metavar="F", help="serve TLS with this certificate")
    network.add_argument("--ssl-keyfile", type=Path, metavar="F", help="and this key")
    access = parser.add_argument_group("access")
    access.add_argument("--api-key-file", type=Path, metavar="F", help=f"keys, one a line; or one in {VARIABLE}")
    access.add_argument(
        "--cors-origin",
        action="append",
        type=_origin,
        default=[],
        metavar="O",
        help="let pages of this origin send requests, such as https://example.com (* is all)",
    )
    model = parser.add_argument_group("model")
    model.add_argument("--device", default="auto", metavar="D", help=DEVICE_HELP)
    model.add_argument("--precision", choices=["auto", *PRECISIONS], default="auto")
    model.add_argument("--revision", help="branch, tag or commit of a hub repository")
    model.add_argument("--max-length", type=_positive, metavar="N", help="default: 512 or the model's limit")
    model.add_argument("--query-max-length", type=_positive, metavar="N", help="default: three quarters of that")
    model.add_argument("--truncation", choices=["only_passage", "longest_first"], default="only_passage")
    model.add_argument("--long-documents", choices=["truncate", "chunk"], default="truncate")
    model.add_argument(
        "--gpu-memory-gb", type=_amount, metavar="N", help="the most that CUDA may take; default: no limit"
    )
    model.add_argument("--no-prepare", action="store_false", dest="prepare", help="do not use the prepared-model cache")
    workers = parser.add_argument_group("workers")
    workers.add_argument(
        "--workers",
        type=_workers,
        metavar="N",
        help="processes that score; 0: score in the server itself; auto (default): one for 16 cores, or for a GPU",
    )
    workers.add_argument("--threads", type=_positive, metavar="N", help="of all workers; default: the usable cores")
    workers.add_argument("--max-batch-tokens", type=_positive, metavar="N", help="default: the planner's choice")
    workers.add_argument(
        "--cache-mb", type=_natural, default=0, metavar="N", help="memory for known scores; default: 0"
    )
    bound = parser.add_argument_group("limits")
    bound.add_argument("--timeout-ms", type=_positive, default=limits.timeout_ms, metavar="N")
    bound.add_argument("--max-queue-tokens", type=_positive, default=limits.max_queue_tokens, metavar="N")
    bound.add_argument("--max-documents", type=_positive, default=limits.max_documents, metavar="N")
    bound.add_argument("--max-body-mb", type=_positive, default=limits.max_body_bytes >> 20, metavar="N")
    bound.add_argument("--max-inflight-mb", type=_positive, default=limits.max_inflight_bytes >> 20, metavar="N")
    bound.add_argument(
        "--max-connections",
        type=_positive,
        metavar="N",
        help=f"default: {limits.max_connections:,}, or what the limit of open files allows",
    )
    bound.add_argument(
        "--drain-s",
        type=_positive,
        metavar="N",
        help="seconds to finish running requests on shutdown; default: --timeout-ms and 5 s more",
    )
    seen = parser.add_argument_group("observability")
    seen.add_argument(
        "--log-format", choices=["auto", "json", "text"], default="auto", help="default: text on a terminal, else json"
    )
    seen.add_argument("--log-level", choices=["debug", "info", "warning", "error"], default="info")
    seen.add_argument(
        "--otlp-endpoint", type=_url, metavar="URL", help="send traces there, such as http://host:4318/v1/traces"
    )


def run(options: argparse.Namespace) -> int:
    """Serve until a signal ends it; return the exit status."""
    log_to_stderr(_log_format(options.log_format), options.log_level)
    settings = settings_of(options)
    # Before anything is started, so that a wrong option is one sentence.
    _check_tls(options)
    _check_threads(settings)
    settings = _check_models(settings)
    n_threads = settings.n_threads or usable_cores().n
    max_connections = allow_connections(options.max_connections, n_threads)
    settings = replace(settings, limits=replace(settings.limits, max_connections=max_connections))
    with closing(Gate(max_connections, greets=options.ssl_certfile is None)) as gate:
        listeners = listen(options.host, options.port, gate)
        _serve(options, settings, gate, listeners)
    return 0


def _serve(options: argparse.Namespace, settings: Settings, gate: Gate, listeners: Sequence[Listener]) -> None:
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    address = _address(options, listeners[0])
    service = Service(
        settings,
        tracer=OtlpTracer(options.otlp_endpoint) if options.otlp_endpoint else None,
        on_ready=lambda: _logger.info("ready at %s", address),
        on_failure=lambda: setattr(server, "should_exit", True),
    )
    drain_s = options.drain_s or settings.limits.timeout_ms / 1000 + _DRAIN_BEYOND_TIMEOUT_S
    server = DrainingServer(_uvicorn(options, App(service), settings.limits, gate), service, drain_s=drain_s)
    if not settings.keys and options.host not in ("127.0.0.1", "::1", "localhost"):
        _logger.warning("no API key is set: anyone who can reach %s can send requests", options.host)
    _logger.info("running on %s (a page to try it on; %s/docs describes the paths)", address, address)
    with asyncio.Runner(loop_factory=Loop) as runner:
        runner.run(server.serve(sockets=list(listeners)))
    if service.error is not None:
        raise service.error


def settings_of(options: argparse.Namespace) -> Settings:
    """Return the settings that the options say. Raises InputError."""
    rules: dict[str, Any] = {
        "query_max_length": options.query_max_length,
        "truncation": options.truncation,
        "long_documents": options.long_documents,
    }
    if options.max_body_mb > options.max_inflight_mb:
        raise InputError(
            f"--max-body-mb {options.max_body_mb} is more than --max-inflight-mb {options.max_inflight_mb}, the limit"
            " of all bodies together; raise that too"
        )
    return Settings(
        models=[_served(text) for text in options.models],
        load=LoadOptions(
            device=options.device,
            precision=options.precision,
            max_length=options.max_length,
            revision=options.revision,
            prepare=options.prepare,
            gpu_memory_gb=options.gpu_memory_gb,
            rules=rules,
        ),
        limits=Limits(
            max_body_bytes=options.max_body_mb << 20,
            max_documents=options.max_documents,
            max_queue_tokens=options.max_queue_tokens,
            max_inflight_bytes=options.max_inflight_mb << 20,
            timeout_ms=options.timeout_ms,
        ),
        n_workers=None if options.workers in (None, "auto") else options.workers,
        n_threads=options.threads,
        cache_bytes=options.cache_mb << 20,
        max_batch_tokens=options.max_batch_tokens,
        keys=ApiKeys.read(options.api_key_file),
        cors_origins=options.cors_origin,
    )


def _served(text: str) -> Served:
    served, (name, equals, _) = Served.parse(text), text.partition("=")
    if (equals and not name) or not served.source:
        raise InputError(f"MODEL {text} has an empty name or an empty model; write NAME=MODEL")
    return served


def _check_tls(options: argparse.Namespace) -> None:
    """Raise InputError unless the certificate and the key can be read and belong together."""
    certificate, key = options.ssl_certfile, options.ssl_keyfile
    if (certificate is None) != (key is None):
        raise InputError("--ssl-certfile and --ssl-keyfile belong together; give both or neither")
    if certificate is None:
        return
    for option, path in (("--ssl-certfile", certificate), ("--ssl-keyfile", key)):
        try:
            path.read_bytes()
        except OSError as error:
            raise InputError(f"{option} {path} cannot be read: {error.strerror}") from error
    try:
        # A key with a password would be asked for on the terminal, by a server that nobody watches.
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
    found = [find(served.source, settings.load, host) for served in settings.models]
    for served, placement in zip(settings.models, found, strict=True):
        artifact = placement.artifact
        check_servable(placement.variant)
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


def _address(options: argparse.Namespace, listener: Listener) -> str:
    """Return where a browser on this host finds the server."""
    host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(options.host, options.host)
    host = f"[{host}]" if ":" in host and not host.startswith("[") else host
    return f"{'https' if options.ssl_certfile else 'http'}://{host}:{listener.getsockname()[1]}"


def _uvicorn(options: argparse.Namespace, app: App, limits: Limits, gate: Gate) -> uvicorn.Config:
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
        ssl_certfile=options.ssl_certfile,
        ssl_keyfile=options.ssl_keyfile,
    )


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None


def _positive(text: str) -> int:
    if (number := _whole(text)) < 1:
        raise argparse.ArgumentTypeError(f"{number} is not positive")
    return number


def _natural(text: str) -> int:
    if (number := _whole(text)) < 0:
        raise argparse.ArgumentTypeError(f"{number} is negative")
    return number


def _amount(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return number


def _port(text: str) -> int:
    number = _natural(text)
    if number > 65535:
        raise argparse.ArgumentTypeError(f"{number} is more than 65535")
    return number


def _workers(text: str) -> int | Literal["auto"]:
    return "auto" if text == "auto" else _natural(text)


def _url(text: str) -> str:
    if not _is_http(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not an address such as http://host:4318/v1/traces")
    return text


def _origin(text: str) -> str:
    """Return an origin as browsers send it: scheme, host and port. With a path it would never be the same."""
    if text != "*" and not (_is_http(text) and text.count("/") == 2):
        raise argparse.ArgumentTypeError(f"{text!r} is not an origin such as https://example.com, nor *")
    return text


def _is_http(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is not a number
        return False
