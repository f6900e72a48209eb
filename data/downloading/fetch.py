"""Files over HTTP: a stream that survives cut connections, downloads that resume, atomic writes, hashes."""

from __future__ import annotations

import hashlib
import io
import os
import re
import threading
from dataclasses import dataclass, field
from pathlib import Path
from time import sleep
from typing import Any

import requests
import urllib3
from tqdm import tqdm

from data.errors import DataError

CHUNK = 1 << 16
"""Bytes per read: small, so that a slow line that often breaks still gets ahead."""
_TRY_AGAIN = {408, 425, 429, 500, 502, 503, 504}
_CUT = (requests.RequestException, urllib3.exceptions.HTTPError, OSError)
_BAD_ADDRESS = (
    requests.exceptions.MissingSchema,
    requests.exceptions.InvalidSchema,
    requests.exceptions.InvalidURL,
)


class NotFound(DataError):
    """The server answers that there is no such file (404, 410)."""


class BeyondEnd(DataError):
    """The file on the server is shorter than what is already here."""


@dataclass(frozen=True)
class Web:
    """How to talk to servers: attempts without progress before giving up; pause and timeout in seconds."""

    session: requests.Session = field(default_factory=requests.Session)
    attempts: int = 6
    pause_s: float = 0.5
    timeout_s: float = 30.0


class RemoteStream(io.RawIOBase):
    """The bytes of `url` from `start` on, as a file; a cut connection is continued where it broke.

    `size` is the whole length in bytes, None if the server does not say. Raises DataError after
    `web.attempts` attempts in a row without a new byte, NotFound on 404, DataError on any other refusal.
    """

    def __init__(self, url: str, web: Web, start: int = 0) -> None:
        self.url = url
        self.size: int | None = None
        self._web = web
        self._position = start
        self._failures = 0
        self._response: requests.Response | None = None
        self.progress: Any = None
        """A progress bar to move along, if any."""

    def readable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """Offset in the whole file."""
        return self._position

    def close(self) -> None:
        """Close the connection."""
        self._drop()
        super().close()

    def readinto(self, buffer: Any) -> int:
        """As in `io.RawIOBase`."""
        data = self._read_some(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _read_some(self, count: int) -> bytes:
        """1 to `count` bytes; none only at the end of the file."""
        while True:
            if self.size is not None and self._position >= self.size:
                return b""
            try:
                response = self._response or self._open()
                data: bytes = response.raw.read(min(count, CHUNK), decode_content=False) if response else b""
            except _BAD_ADDRESS as error:
                raise DataError(f"{self.url}: not a usable address ({error}); check it") from error
            except _CUT as error:
                self._pause(error)
                continue
            if data:
                self._position += len(data)
                self._failures = 0
                if self.progress is not None:
                    self.progress.total = self.size
                    self.progress.update(len(data))
                return data
            if self.size is None or self._position >= self.size:
                return b""
            self._pause(f"the server closed the connection after {self._position} of {self.size} bytes")

    def _open(self) -> requests.Response | None:
        """Ask for the bytes from the current position on; None when there are none left."""
        headers = {"Accept-Encoding": "identity"}
        if self._position:
            headers["Range"] = f"bytes={self._position}-"
        web = self._web
        response = web.session.get(self.url, headers=headers, stream=True, timeout=web.timeout_s)
        self._response = response
        if response.status_code == 416:
            self._at_end(response)
            return None
        self._refuse(response)
        resumed = response.status_code == 206
        self._set_size(_total(response) if resumed else _length(response))
        if not resumed:
            self._skip(response, self._position)  # this server ignores ranges: read up to where we were
        return response

    def _at_end(self, response: requests.Response) -> None:
        total = _total(response)
        if total is None or total < self._position:
            raise BeyondEnd(f"{self.url}: has fewer than the {self._position} bytes already read; run again")
        self._set_size(total)
        self._drop()

    def _refuse(self, response: requests.Response) -> None:
        status = response.status_code
        if status in (200, 206):
            return
        self._drop()
        fault = f"{self.url}: the server answers {status} {response.reason}"
        if status in _TRY_AGAIN:
            raise requests.ConnectionError(fault)
        kind = NotFound if status in (404, 410) else DataError
        raise kind(f"{fault}; check the address, or give another with --{{coco,voc,imagenette}}-url")

    def _set_size(self, size: int | None) -> None:
        if self.size is not None and size is not None and size != self.size:
            raise DataError(f"{self.url}: was {self.size} bytes long and is now {size}, so the file changed; run again")
        self.size = size if size is not None else self.size

    def _skip(self, response: requests.Response, count: int) -> None:
        while count:
            data = response.raw.read(min(count, CHUNK), decode_content=False)
            if not data:
                raise requests.ConnectionError("the server ignores ranges and closed too early")
            count -= len(data)

    def _pause(self, reason: object) -> None:
        self._drop()
        self._failures += 1
        if self._failures >= self._web.attempts:
            raise DataError(
                f"{self.url}: nothing came in {self._failures} attempts ({reason}); "
                "check the connection and run the same command again: it resumes"
            )
        sleep(min(30.0, self._web.pause_s * 2 ** (self._failures - 1)))

    def _drop(self) -> None:
        if self._response is not None:
            self._response.close()
            self._response = None


def _length(response: requests.Response) -> int | None:
    text = response.headers.get("Content-Length", "")
    return int(text) if text.isdigit() else None


def _total(response: requests.Response) -> int | None:
    """The whole length in `Content-Range: bytes 5-9/10` or `bytes */10`."""
    match = re.search(r"/(\d+)$", response.headers.get("Content-Range", ""))
    return int(match.group(1)) if match else None


def fetch_bytes(url: str, web: Web, limit: int) -> bytes:
    """The whole of a small file. Raises DataError when it is longer than `limit` bytes."""
    with RemoteStream(url, web) as stream:
        parts, count = [], 0
        while data := stream.read(CHUNK):
            parts.append(data)
            count += len(data)
            if count > limit:
                raise _too_long(url, limit)
    return b"".join(parts)


def download_file(url: str, path: Path, web: Web, limit: int) -> None:
    """Bring `url` to `path`, continuing an incomplete `path.part`. Raises DataError past `limit` bytes."""
    part = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        _append(url, part, web, limit)
    except BeyondEnd:
        part.unlink()
        _append(url, part, web, limit)
    os.replace(part, path)


def _append(url: str, part: Path, web: Web, limit: int) -> None:
    start = part.stat().st_size if part.exists() else 0
    with (
        RemoteStream(url, web, start) as stream,
        part.open("ab") as file,
        bar(None, Path(url).name, "B", start) as stream.progress,
    ):
        while data := stream.read(CHUNK):
            if max(stream.tell(), stream.size or 0) > limit:
                raise _too_long(url, limit)
            file.write(data)


def _too_long(url: str, limit: int) -> DataError:
    return DataError(f"{url}: longer than {limit} bytes, so not the file expected; check the address")


def bar(total: int | None, label: str, unit: str, start: int = 0) -> Any:
    """A progress bar on stderr, silent where that is not a terminal."""
    return tqdm(total=total, desc=label, unit=unit, unit_scale=unit == "B", initial=start, disable=None)


def write_atomic(path: Path, content: bytes, scratch: Path) -> None:
    """Write a file so that it is either whole or absent; `scratch` is a folder on the same disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch.mkdir(parents=True, exist_ok=True)
    temporary = scratch / f"{path.name}.{os.getpid()}.{threading.get_ident()}.tmp"
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def sha256(content: bytes) -> str:
    """Hexadecimal SHA-256."""
    return hashlib.sha256(content).hexdigest()
