"""Serve a trained model: a page for a browser, and OpenAI's protocol for programs.

    python -m gpt.serve runs/tiny                                       http://127.0.0.1:8000
    python -m gpt.serve runs/tiny --host 0.0.0.0 --api-key SECRET       for other machines

The model may be one of ours, a GPT-2 of Hugging Face's, one that was finetuned on conversations, or a classifier. docs/serve.md says more.
"""

from __future__ import annotations

import argparse
import importlib.util
import ipaddress
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from typing import Any

from data.paths import expand_path
from gpt.checkpoints.loading import load_model
from gpt.cli.arguments import Parser, add_int8_option, check_backend
from gpt.errors import fail, run_main

KEY = "GPT_API_KEY"  # in the environment: a command line can be read by everybody on the machine


def main(argv: Sequence[str] | None = None) -> None:
    """Load the model and answer until SIGTERM or Ctrl-C.

    Raises:
        UserError, DataError, DeviceUnavailableError: for what the user can correct.
    """
    options = _parse(argv)
    if not all(importlib.util.find_spec(package) for package in ("fastapi", "uvicorn")):
        fail("the server needs two more packages: pip install 'tensorlite[serve]'.")
    listening = _listen(options.host, options.port)  # before the model is loaded, so that a port that is taken is told at once
    with listening:
        _serve(options, listening)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m gpt.serve", description="Serve a trained model: a page for a browser, and OpenAI's protocol.")
    parser.add_argument("run", metavar="RUN", help="a folder that gpt.train or gpt.finetune has written, or a published model")
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on (default: 127.0.0.1, for this machine alone)")
    parser.add_argument("--port", type=int, default=8000, help="the port (default: 8000; 0 takes a free one)")
    parser.add_argument(
        "--api-key", metavar="KEY", default=os.environ.get(KEY), help=f"what clients have to send (default: ${KEY}, if it is set)"
    )
    parser.add_argument("--without-api-key", action="store_true", help="let everybody ask who can reach --host")
    parser.add_argument("--name", help="the model's name for clients (default: the folder's)")
    parser.add_argument("--slots", type=int, default=16, metavar="N", help="texts that are written at once (default: 16)")
    parser.add_argument("--queue", type=int, default=64, metavar="N", help="texts that may wait; more are refused with 429 (default: 64)")
    parser.add_argument("--max-tokens", type=int, default=1024, metavar="N", help="the longest text, in tokens (default: 1024)")
    parser.add_argument("--max-body", type=int, default=1 << 20, metavar="N", help="the largest request, in bytes (default: 1048576)")
    parser.add_argument(
        "--context-keep", type=int, metavar="N", help="when the context is full, keep its last N tokens (default: half of it)"
    )
    parser.add_argument("--grace", type=int, default=30, metavar="S", help="seconds that texts may take to end after SIGTERM (default: 30)")
    parser.add_argument("--log-texts", action="store_true", help="write prompts and texts to the log, too")
    parser.add_argument("--backend", default="numpy", help="numpy (the CPU) or cupy (an NVIDIA GPU) (default: numpy)")
    add_int8_option(parser)
    options = parser.parse_args(argv)
    check_backend(options)
    for name, least in {"slots": 1, "queue": 0, "max_tokens": 1, "max_body": 1024, "context_keep": 1, "grace": 0, "port": 0}.items():
        if getattr(options, name) is not None and getattr(options, name) < least:
            parser.error(f"--{name.replace('_', '-')} must be at least {least}, got {getattr(options, name)}.")
    if options.port > 65_535:
        parser.error(f"--port goes up to 65535, got {options.port}.")
    if options.api_key is not None and (
        not options.api_key.isascii() or not options.api_key.isprintable() or " " in options.api_key or not options.api_key
    ):
        parser.error("an API key is at least one printable ASCII character, without spaces.")
    if not _is_loopback(options.host) and options.api_key is None and not options.without_api_key:
        parser.error(
            f"with --host {options.host} other machines can ask this model: give an --api-key that they have to send, "
            "or --without-api-key if everybody may."
        )
    return options


def _is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens there."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listening = socket.socket(family, kind, protocol)
        try:
            if os.name != "nt":  # there it would let two servers share a port
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            listening.listen(1024)
        except OSError:
            listening.close()
            raise
    except (OSError, UnicodeError) as error:
        fail(
            f"nobody can be answered at {host}, port {port}: {getattr(error, 'strerror', None) or error}; choose another --host or --port."
        )
    return listening


def _serve(options: argparse.Namespace, listening: socket.socket) -> None:
    import uvicorn

    from gpt.serving.app import make_app
    from gpt.serving.gate import LOCAL_NAMES, Rules

    service = _load(options)
    hosts = (*LOCAL_NAMES, options.host.lower()) if _is_loopback(options.host) else ()
    rules = Rules(key=options.api_key, hosts=hosts, body=options.max_body)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    config = uvicorn.Config(
        make_app(service, rules),
        access_log=False,  # the gate has its own, without anybody's text
        log_config=None,
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=options.grace,
        ws="none",
    )
    host, port = listening.getsockname()[:2]
    name = f"[{host}]" if ":" in host else host
    print(f"{service.name} ({service.kind}) at http://{name}:{port}  (Ctrl-C ends it)", flush=True)
    _allow_many_connections()
    signal.signal(signal.SIGTERM, lambda *_: None)  # uvicorn finishes what is running, and then sends itself the signal again
    uvicorn.Server(config).run(sockets=[listening])


def _load(options: argparse.Namespace) -> Any:
    """The model in the folder, ready to be asked."""
    from gpt.finetuning.classifier import is_classifier, load_classifier
    from gpt.finetuning.find_template import find_template
    from gpt.generation.jinja_template import JinjaTemplate
    from gpt.model import LanguageModel
    from gpt.serving.engine import Engine
    from gpt.serving.service import Limits, Service

    model: LanguageModel
    if is_classifier(options.run):
        if options.int8:
            fail(f"--int8 is for models that write texts, and {options.run} is a classifier: leave it out.")
        model, tokenizer = load_classifier(options.run, options.backend)
    else:
        model, tokenizer, _ = load_model(options.run, options.backend, options.int8)
    block_size = model.config.block_size
    keep = options.context_keep or (block_size + 1) // 2
    if keep > block_size:
        fail(f"--context-keep must be at most {block_size:,}, the tokens that this model's context holds, got {keep:,}.")
    template = None if is_classifier(options.run) else find_template(options.run)
    if isinstance(template, JinjaTemplate):
        tokenizer = template.tokenizer(tokenizer)
    log = logging.getLogger("gpt.serve")
    return Service(
        name=options.name or expand_path(options.run).resolve().name,
        model=model,
        tokenizer=tokenizer,
        engine=Engine(model, tokenizer, slots=options.slots, queue=options.queue),
        template=template,
        limits=Limits(options.max_tokens, options.slots, keep),
        log=(lambda prompt, texts: log.info("%r -> %s", prompt, ", ".join(map(repr, texts)))) if options.log_texts else None,
    )


def _allow_many_connections() -> None:
    """A connection is an open file; allow as many as the system does."""
    if sys.platform != "win32":
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft < hard:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    sys.exit(run_main(main))
