"""The command `rankrt serve`: options become Settings, and uvicorn runs the application."""

import argparse
import logging
import socket
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import uvicorn

from rankrt.artifact import PRECISIONS
from rankrt.backends.in_flight import N_IN_FLIGHT
from rankrt.devices import DEVICE_HELP, Device
from rankrt.errors import InputError
from rankrt.machine import usable_cores
from rankrt.server.app import App
from rankrt.server.draining import DrainingServer
from rankrt.server.keys import VARIABLE, ApiKeys
from rankrt.server.limits import Limits
from rankrt.server.logs import log_to_stderr
from rankrt.server.models import LoadOptions, Served, found_for, rules_for
from rankrt.server.service import Service, Settings
from rankrt.server.tracing import OtlpTracer

# A thread that tokenizes keeps the interpreter for so long before others get it, and a request asks for it about six
# times on its way, a run three times: with Python's own 5 ms a request waits for 30.
_SWITCH_INTERVAL_S = 0.0002

_logger = logging.getLogger("rankrt.server")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    limits = Limits()
    parser.add_argument(
        "models", nargs="+", metavar="MODEL", help="an artifact's folder or a hub id, or NAME=MODEL to name it"
    )
    where = parser.add_argument_group("where")
    where.add_argument("--host", default="127.0.0.1", help="default: 127.0.0.1, this machine only")
    where.add_argument("--port", type=_port, default=8080, help="default: 8080; 0 takes a free one")
    where.add_argument("--ssl-certfile", type=Path, metavar="F", help="serve TLS with this certificate")
    where.add_argument("--ssl-keyfile", type=Path, metavar="F", help="and this key")
    who = parser.add_argument_group("who")
    who.add_argument("--api-key-file", type=Path, metavar="F", help=f"keys, one a line; or one in {VARIABLE}")
    who.add_argument(
        "--cors-origin", action="append", default=[], metavar="O", help="let pages of this origin ask (* is all)"
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
        "--gpu-memory-gb", type=float, metavar="N", help="the most that CUDA may take; default: no limit"
    )
    model.add_argument("--no-prepare", action="store_false", dest="prepare", help="do not use the prepared-model cache")
    work = parser.add_argument_group("work")
    work.add_argument(
        "--workers",
        type=_workers,
        metavar="N",
        help="processes that score; 0: score in the server itself; auto (default): one for 16 cores, or for a GPU",
    )
    work.add_argument("--threads", type=_positive, metavar="N", help="of all workers; default: the usable cores")
    work.add_argument("--max-batch-tokens", type=_positive, metavar="N", help="default: the planner's choice")
    work.add_argument("--cache-mb", type=_natural, default=0, metavar="N", help="memory for known scores; default: 0")
    bound = parser.add_argument_group("limits")
    bound.add_argument("--timeout-ms", type=_positive, default=limits.timeout_ms, metavar="N")
    bound.add_argument("--max-queue-tokens", type=_positive, default=limits.max_queue_tokens, metavar="N")
    bound.add_argument("--max-documents", type=_positive, default=limits.max_documents, metavar="N")
    bound.add_argument("--max-body-mb", type=_positive, default=limits.max_body_bytes >> 20, metavar="N")
    bound.add_argument("--max-inflight-mb", type=_positive, default=limits.max_inflight_bytes >> 20, metavar="N")
    bound.add_argument("--max-connections", type=_positive, default=limits.max_connections, metavar="N")
    bound.add_argument("--drain-s", type=_positive, default=30, metavar="N", help="for what goes on at the end")
    seen = parser.add_argument_group("what is seen")
    seen.add_argument("--log-format", choices=["json", "text"], default="json")
    seen.add_argument("--log-level", choices=["debug", "info", "warning", "error"], default="info")
    seen.add_argument("--otlp-endpoint", metavar="URL", help="send traces there, such as http://host:4318/v1/traces")


def run(options: argparse.Namespace) -> int:
    """Serve until a signal ends it; return the exit status."""
    settings = settings_of(options)
    # Before anything is started, so that a wrong path is one sentence.
    devices = [_check(served, settings.load) for served in settings.models]
    if any(device.is_gpu for device in devices):
        settings = _for_gpu(settings)
    _check_address(options.host, options.port)
    log_to_stderr(options.log_format, options.log_level)
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    tracer = OtlpTracer(options.otlp_endpoint) if options.otlp_endpoint else None
    service = Service(settings, tracer=tracer, on_failure=lambda: setattr(server, "should_exit", True))
    server = DrainingServer(_uvicorn(options, App(service)), service, drain_s=options.drain_s)
    if not settings.keys and options.host not in ("127.0.0.1", "::1", "localhost"):
        _logger.warning("no API key is set: whoever reaches %s may ask", options.host)
    server.run()
    if service.error is not None:
        raise service.error
    return 0


def settings_of(options: argparse.Namespace) -> Settings:
    """Return the settings that the options say. Raises InputError."""
    rules: dict[str, Any] = {
        "query_max_length": options.query_max_length,
        "truncation": options.truncation,
        "long_documents": options.long_documents,
    }
    if (options.ssl_certfile is None) != (options.ssl_keyfile is None):
        raise InputError("--ssl-certfile and --ssl-keyfile belong together")
    return Settings(
        models=[Served.parse(text) for text in options.models],
        load=LoadOptions(
            device=options.device,
            precision=options.precision,
            max_length=options.max_length,
            revision=options.revision,
            prepare=options.prepare,
            gpu_memory_bytes=None if options.gpu_memory_gb is None else int(options.gpu_memory_gb * 2**30),
            rules=rules,
        ),
        limits=Limits(
            max_body_bytes=options.max_body_mb << 20,
            max_documents=options.max_documents,
            max_queue_tokens=options.max_queue_tokens,
            max_inflight_bytes=options.max_inflight_mb << 20,
            max_connections=options.max_connections,
            timeout_ms=options.timeout_ms,
        ),
        n_workers=None if options.workers in (None, "auto") else options.workers,
        n_threads=options.threads,
        cache_bytes=options.cache_mb << 20,
        max_batch_tokens=options.max_batch_tokens,
        keys=ApiKeys.read(options.api_key_file),
        cors_origins=options.cors_origin,
    )


def _check(served: Served, load: LoadOptions) -> Device:
    """Return where a model will run. Raises what its loading would raise, as far as that is quickly found."""
    artifact, variant, device = found_for(served, load)
    artifact.check_sizes([artifact.manifest.tokenizer, *variant.files])
    rules_for(artifact, load)
    return device


def _for_gpu(settings: Settings) -> Settings:
    """Have one worker, as each has the weights in the GPU's memory, and a lane for each run that may be in flight."""
    n_threads = max(N_IN_FLIGHT, settings.n_threads or usable_cores().n)
    return replace(settings, n_workers=1 if settings.n_workers is None else settings.n_workers, n_threads=n_threads)


def _check_address(host: str, port: int) -> None:
    """Raise InputError if nobody could listen there; uvicorn would say so only after the models are being loaded."""
    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError as error:
        raise InputError(f"{host}, port {port}, cannot be listened on: {error}") from error


def _uvicorn(options: argparse.Namespace, app: App) -> uvicorn.Config:
    for path in (options.ssl_certfile, options.ssl_keyfile):
        if path is not None and not path.is_file():
            raise InputError(f"{path} is no file")
    return uvicorn.Config(
        app.starlette(),
        host=options.host,
        port=options.port,
        http="h11",  # the parser that bounds the bytes of headers
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=75,  # longer than what load balancers keep, which is usually 60 s
        limit_concurrency=options.max_connections,
        ssl_certfile=options.ssl_certfile,
        ssl_keyfile=options.ssl_keyfile,
    )


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not positive")
    return number


def _port(text: str) -> int:
    number = _natural(text)
    if number > 65535:
        raise argparse.ArgumentTypeError(f"{number} is more than 65535")
    return number


def _natural(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{number} is negative")
    return number


def _workers(text: str) -> int | Literal["auto"]:
    return "auto" if text == "auto" else _natural(text)
