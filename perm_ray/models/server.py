"""Serve a model by vLLM's own OpenAI-compatible server, in a process of its own, on loopback.

Nothing of a server is ours: settings are those of an engine (`vllm.engine_kwargs`), the key goes through the
environment, where no list of processes shows it, and the server ends with the block that started it.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from perm_ray.config.engines import EngineConfig
from perm_ray.errors import ConfigError, RunError
from perm_ray.models import fit_context
from perm_ray.models.vllm import engine_env, engine_kwargs

HOST = "127.0.0.1"
_POLL_S, _END_S = 0.5, 20.0
_SERVER = "vllm.entrypoints.openai.api_server"


@dataclass(frozen=True, slots=True)
class Served:
    """A served model: `base_url` ends in /v1, `name` is the model's at the endpoint, `key` opens it."""

    base_url: str
    name: str
    key: str
    process: subprocess.Popen[bytes]
    log: Path | None = None

    def wait_until_up(self, timeout_s: float) -> None:
        """Wait until it answers. Raises `RunError` when it ended, or did not answer in time."""
        health = f"{self.base_url.removesuffix('/v1')}/health"
        where = "above" if self.log is None else f"in {self.log}"
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            code = self.process.poll()
            if code is not None:
                raise RunError(f"vLLM's server ended with exit code {code}: its own words are {where}.")
            try:
                with urllib.request.urlopen(health, timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(_POLL_S)
        raise RunError(
            f"vLLM's server did not answer within {timeout_s:.0f} s: raise start_timeout_s, or look {where}."
        )


@contextmanager
def served(
    folder: Path,
    name: str,
    config: EngineConfig,
    seed: int,
    port: int = 0,
    log: Path | None = None,
    fit_log: Path | None = None,
    wait: bool = True,
) -> Iterator[Served]:
    """Start a server, give it when it answers, and end it with the block.

    Args:
        folder: The model.
        name: Its name at the endpoint.
        config: Memory, lengths and devices.
        seed: Of sampling.
        port: Where it listens on loopback; 0 takes one that is free.
        log: A file for the server's own words; None lets it speak to this terminal.
        fit_log: A JSONL file for the requests, which are made to fit the context, with a quarter of it for
            the answer (`fit_context.py`). None leaves requests as they are.
        wait: False gives it at once: several start together, and `Served.wait_until_up` waits for each.

    Raises:
        ConfigError: Something else listens at the port.
        RunError: The server ended, or did not answer within `start_timeout_s`.
    """
    port = claimed_port(port)
    key = os.environ.get("VLLM_API_KEY") or secrets.token_urlsafe(24)
    environment = {**os.environ, **engine_env(config), "VLLM_API_KEY": key}
    environment.pop("VLLM_ENABLE_V1_MULTIPROCESSING")  # the server has a process for its engine
    command = [sys.executable, "-m", _SERVER, "--model", str(folder), *_arguments(folder, config, seed)]
    command += ["--host", HOST, "--port", str(port), "--served-model-name", name]
    if fit_log is not None:
        command += ["--middleware", fit_context.MIDDLEWARE]
        length = config.max_model_len
        sizes = {fit_context.MAX_TOKENS: length // 4, fit_context.CONTEXT: length, fit_context.LOG: fit_log}
        environment |= {key: str(value) for key, value in sizes.items()}
    with ExitStack() as stack:
        output = None if log is None else stack.enter_context(log.open("ab"))
        process = subprocess.Popen(
            command, env=environment, stdout=output, stderr=output, start_new_session=True
        )
    try:
        server = Served(f"http://{HOST}:{port}/v1", name, key, process, log)
        if wait:
            server.wait_until_up(config.start_timeout_s)
        yield server
    finally:
        _end(process)


def _arguments(folder: Path, config: EngineConfig, seed: int) -> list[str]:
    """Return an engine's settings as the server's arguments."""
    settings: Mapping[str, object] = engine_kwargs(folder, config, seed)
    arguments: list[str] = []
    for name, value in settings.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            arguments.append(f"--{flag}" if value else f"--no-{flag}")
        elif name != "model":
            arguments += [f"--{flag}", str(value)]
    return arguments


def claimed_port(port: int) -> int:
    """Return `port`, or one that is free for 0. Raises `ConfigError` when something listens there."""
    try:
        with socket.create_server((HOST, port)) as listener:
            return listener.getsockname()[1]
    except OSError as error:
        raise ConfigError(
            f"--port must be free on {HOST}, found {port} in use ({error.strerror}): choose another, or 0 "
            "for any."
        ) from error


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask the server to end, and kill what is left of its processes."""
    try:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(_END_S)
    finally:  # also when a second Ctrl-C comes
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
