"""MLflow for tests: a database that is ready at once, and a server that goes away and comes back.

Creating MLflow's tables takes seconds, and so does importing its server: both are done once. Stopping the
server closes its port, as an outage does, while its process lives on for the next `start`.
"""

from __future__ import annotations

import functools
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from perm_ray.tracking.mlflow_client import connect

_SERVE = """
import socket, sys, threading, time
import uvicorn
from mlflow.server.fastapi_app import app

port, server, thread = int(sys.argv[1]), None, None
print("ready", flush=True)
for line in sys.stdin:
    if line.strip() == "start":
        server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error"))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started and thread.is_alive():
            time.sleep(0.01)
    else:
        server.should_exit = True
        thread.join()
    print("done", flush=True)
"""


@functools.cache
def _empty_database() -> Path:
    path = Path(tempfile.mkdtemp(prefix="perm_ray-mlflow-")) / "mlflow.db"
    connect(f"sqlite:///{path}").search_experiments()
    return path


def write_mlflow_database(path: Path) -> str:
    """Write an MLflow database without runs to the file `path`; returns its URI."""
    for part in _empty_database().parent.iterdir():  # with what sqlite has not merged yet
        shutil.copy(part, path.with_name(part.name.replace("mlflow.db", path.name)))
    return f"sqlite:///{path}"


class MlflowServer:
    """A real MLflow server over sqlite in `folder`, on a free port of this machine.

    `with MlflowServer(folder) as server:` it is not started yet; `start` and `stop` as often as you like.
    """

    def __init__(self, folder: Path) -> None:
        self.database_uri = write_mlflow_database(folder / "server.db")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        environment = {
            "_MLFLOW_SERVER_FILE_STORE": self.database_uri,
            "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/",
            "_MLFLOW_SERVER_ARTIFACT_DESTINATION": str(folder / "artifacts"),
            "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SERVE, str(self.port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, **environment},
        )
        self._ready = False

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        self._wait_ready()
        self._tell("start")

    def stop(self) -> None:
        self._tell("stop")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def _wait_ready(self) -> None:
        if not self._ready:
            self._expect("ready")
            self._ready = True

    def _tell(self, word: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{word}\n")
        self._process.stdin.flush()
        self._expect("done")

    def _expect(self, word: str) -> None:
        assert self._process.stdout is not None
        said = self._process.stdout.readline().strip()
        if said != word:
            raise RuntimeError(f"The MLflow server said {said!r}, not {word!r}: it has ended.")
