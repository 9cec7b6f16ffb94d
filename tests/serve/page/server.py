"""The real server, started as people start it, and asked as programs ask it."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import requests

from .drawings import decode

PATIENCE_S = 60


@dataclass(frozen=True, kw_only=True)
class Service:
    """A server that runs, and its process."""

    url: str
    process: subprocess.Popen[bytes]

    def stop(self) -> None:
        """End it and wait until it has gone."""
        self.process.terminate()
        self.process.wait(PATIENCE_S)

    def ask(self, image: bytes, **query: Any) -> requests.Response:
        """Have an image predicted."""
        answer = requests.post(
            f"{self.url}v1/predict", data=image, params=query, timeout=PATIENCE_S
        )
        answer.raise_for_status()
        return answer

    def mask(self, image: bytes, **query: Any) -> np.ndarray:
        """The server's mask, (H, W) of 0 and 255."""
        return decode(self.ask(image, output="mask", **query).content)


@contextmanager
def serving(bundle: Path, *options: str, state: Path, token: str = "") -> Iterator[Service]:
    """Serve a bundle with these options until the block ends."""
    command = [sys.executable, "-m", "binseg", "serve", str(bundle), "--port", "0"]
    command += ["--state", str(state), *options]
    settings = {**os.environ, "BINSEG_TOKEN": token} if token else None
    with subprocess.Popen(
        command, env=settings, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        try:
            yield Service(url=_await(process), process=process)
        finally:
            process.terminate()
            process.communicate(timeout=PATIENCE_S)


def _await(process: subprocess.Popen[bytes]) -> str:
    """The address that it tells as soon as it answers."""
    assert process.stderr is not None
    said = b""
    for line in process.stderr:
        said += line
        found = re.search(rb"http://[\d.:]+/", line)
        if found:
            return found[0].decode()
    raise AssertionError(said.decode())
