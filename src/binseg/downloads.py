"""Downloads that go on where an earlier try stopped, checked by their hash."""

import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from binseg.errors import DataError, one_line
from binseg.progress import SILENT, Progress
from binseg.storage import locked, output_error, shown, sync

if TYPE_CHECKING:
    import requests  # takes long to import, and only downloads need it

_CHUNK = 1 << 18
_TIMEOUT = (10.0, 60.0)  # seconds to connect, and between two pieces of the answer
_TRIES = 5  # in a row without a single new byte
_RETRY_WAIT = 1.0  # seconds, doubled with each try
_REASONS = {
    **dict.fromkeys(("ConnectTimeout", "Timeout"), "the server doesn't answer"),
    "SSLError": "the server's certificate can't be trusted",
    "ProxyError": "the proxy can't be reached",
    "ChunkedEncodingError": "the line broke",
    "ConnectionError": "the server can't be reached; is there a network?",
}
"""Errors of requests that another try may get past; their own texts are nests of objects."""


def download(
    url: str,
    path: Path,
    *,
    sha256: str | None = None,
    md5: str | None = None,
    progress: Progress = SILENT,
) -> Path:
    """Fetch a file by pooch, resuming if a checksum proves the whole; DataError, OutputError."""
    import pooch.hashes

    assert sha256 is None or md5 is None, "one hash decides"
    known = sha256 if md5 is None else f"md5:{md5}"
    part = path.with_name(path.name + ".part")

    def fetch(_url: str, temporary: str, _pooch: object) -> None:
        _fetch(url, part, label=path.name, progress=progress)
        part.replace(temporary)

    where = {"fname": path.name, "path": path.parent}
    retrieve = partial(pooch.retrieve, url, known, downloader=fetch, **where)
    pooch.get_logger().setLevel("WARNING")
    with locked(path, tidy=True):
        if path.exists():
            if not pooch.hashes.hash_matches(path, known):
                raise DataError(
                    f"{shown(path)}: isn't the file of hash {known} that {url} is to give; move "
                    "it away and run again to fetch it anew"
                )
            return path
        if known is None:
            part.unlink(missing_ok=True)
        resumed = part.exists()
        try:
            try:
                retrieve()
            except ValueError:
                if not resumed:
                    raise
                # The first half may have been of an older version, so once more from the start.
                progress.say(f"{path.name}: the resumed file is wrong, fetching it from the start")
                retrieve()
        except ValueError as error:  # as pooch calls a wrong hash
            raise DataError(f"{url}: {one_line(str(error))}") from None
        except OSError as error:
            raise output_error(path, error) from error
    return path


def _fetch(url: str, part: Path, *, label: str, progress: Progress) -> None:
    """Fill `part` to the end, trying again as long as new bytes come (pooch's own starts anew)."""
    import requests

    failures = 0
    with requests.Session() as session:
        while True:
            before = _size(part)
            try:
                return _fetch_once(session, url, part, label=label, progress=progress)
            except requests.RequestException as error:
                reason, may_pass = _reason(error)
                failures = 0 if _size(part) > before else failures + 1
                if not may_pass:
                    raise DataError(f"can't fetch {url}: {reason}; check the address") from error
                if failures >= _TRIES:
                    kept = f"; what has come is kept in {shown(part)}" if _size(part) else ""
                    told = f"can't fetch {url}: {reason}{kept}"
                    raise DataError(f"{told}; run again to go on") from error
                time.sleep(_RETRY_WAIT * 2 ** max(failures - 1, 0))


def _reason(error: "requests.RequestException") -> tuple[str, bool]:
    if error.response is not None:
        status = error.response.status_code
        return f"the server says {status} {error.response.reason}", status >= 500
    for kind in type(error).__mro__:
        if kind.__name__ in _REASONS:
            return _REASONS[kind.__name__], True
    return one_line(str(error)) or type(error).__name__, False


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _fetch_once(
    session: "requests.Session", url: str, part: Path, *, label: str, progress: Progress
) -> None:
    """Ask once for what is missing in `part`, and append it; the whole where it must be."""
    from requests.exceptions import ChunkedEncodingError, RequestException

    have = _size(part)
    # Without "identity" a server may zip the answer, and then byte positions mean nothing.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with session.get(url, headers=headers, stream=True, timeout=_TIMEOUT) as answer:
        place = answer.headers.get("Content-Range", "")
        if answer.status_code == 416 and place.endswith(f"/{have}"):
            return  # nothing was missing
        goes_on = answer.status_code == 206 and place.startswith(f"bytes {have}-")
        if answer.status_code == 416 or (answer.status_code == 206 and not goes_on):
            part.unlink(missing_ok=True)
            raise ChunkedEncodingError("the server has another file than the one begun")
        answer.raise_for_status()
        start = have if goes_on else 0
        length = answer.headers.get("Content-Length", "")
        total = start + int(length) if length.isdigit() else None
        try:
            part.parent.mkdir(parents=True, exist_ok=True)
            with (
                progress.task(f"fetch {label}", total=total) as task,
                part.open("ab" if start else "wb") as handle,
            ):
                task.advance(start)
                for piece in answer.iter_content(_CHUNK):
                    handle.write(piece)
                    task.advance(len(piece))
            sync(part)
        except RequestException:
            raise  # which are OSErrors too
        except OSError as error:
            raise output_error(part, error) from error
