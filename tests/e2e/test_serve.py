"""`perm-ray serve` for real: an endpoint with a key, on loopback, that ends when it is asked to."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import psutil
import pytest

from tests.support.program import environment

COMMAND = [sys.executable, "-m", "perm_ray.cli.main", "serve"]


@pytest.mark.timeout(300)
def test_a_model_is_served_with_a_key_and_ends_cleanly(tiny_model: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    arguments = [str(tiny_model), "--port", "0", "--name", "tiny"]
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*COMMAND, *arguments], stdout=file, stderr=subprocess.STDOUT, env=environment()
        )
        try:
            while not (said := re.search(r"at (\S+), with the key (\S+)", log.read_text())):
                assert process.poll() is None, log.read_text()[-3000:]
                time.sleep(0.5)
            base, key = said.groups()
            assert base.startswith("http://127.0.0.1:")
            question = {"model": "tiny", "messages": [{"role": "user", "content": "Hello."}], "max_tokens": 4}
            assert httpx2.post(f"{base}/chat/completions", json=question).status_code == 401
            headers = {"Authorization": f"Bearer {key}"}
            answer = httpx2.post(f"{base}/chat/completions", json=question, headers=headers, timeout=60)
            assert answer.json()["usage"]["completion_tokens"] == 4, answer.text
            children = psutil.Process(process.pid).children(recursive=True)
            assert not any(key in " ".join(child.cmdline()) for child in children)
        finally:
            process.send_signal(signal.SIGINT)
            code = process.wait(60)
    assert code == 0
    assert not any(child.is_running() and child.status() != "zombie" for child in children)


def test_what_cannot_be_served_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for arguments, said in (
            ((tiny_model, "--port", port), f"found {port} in use"),
            ((tmp_path, "--port", 0), "is not a Hugging Face model folder"),
            ((tiny_model, "--before"), "--before is for the directory of a run"),
        ):
            done = subprocess.run(
                [*COMMAND, *map(str, arguments)],
                capture_output=True,
                text=True,
                timeout=60,
                env=environment(),
                check=False,
            )
            assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
            assert said in done.stderr
