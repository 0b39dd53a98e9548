"""A small object store on the loopback: what s3fs asks of S3, and the pages of a plain web server.

Objects are kept in a dict by bucket and key. `refuse` makes requests fail, as a store does whose
user may not, or whose quota is used up.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

WHEN = "Sat, 01 Nov 2025 00:00:00 GMT"
ISO = "2025-11-01T00:00:00.000Z"
RANGE = re.compile(r"bytes=(\d+)-(\d*)")

Refuse = Callable[[str, str], bool]  # by method and key


class Store(ThreadingHTTPServer):
    """The server; `objects` by `bucket/key`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []  # method and key
        self.refuse: Refuse = lambda method, key: False

    @property
    def url(self) -> str:
        """Of the server."""
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def serving() -> Iterator[Store]:
    """A server that runs."""
    store = Store()
    thread = threading.Thread(target=store.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield store
    finally:
        store.shutdown()
        thread.join()
        store.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Store

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _handle(self) -> None:
        parts = urlsplit(self.path)
        key = unquote(parts.path).strip("/")
        sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("x-amz-decoded-content-length"):
            sent = _unchunked(sent)
        self.server.requests.append((self.command, key))
        if self.server.refuse(self.command, key):
            self._answer(403, b"<Error><Code>AccessDenied</Code><Message>quota</Message></Error>")
            return
        query, objects = parse_qs(parts.query, keep_blank_values=True), self.server.objects
        if self.command == "PUT":
            objects[key] = sent
            self._answer(200, ETag=_tag(sent))
        elif self.command == "DELETE":
            objects.pop(key, None)
            self._answer(204)
        elif "list-type" in query:
            self._answer(200, _listing(objects, key, query), Content_Type="application/xml")
        elif key in objects:
            self._give(objects[key])
        elif not any(name.startswith(f"{key}/") for name in objects):
            self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
        elif not parts.path.endswith("/"):
            self._answer(301, Location=f"{parts.path}/")
        else:
            inside = (name for name in objects if name.startswith(f"{key}/"))
            names = (name.removeprefix(f"{key}/").partition("/") for name in inside)
            links = sorted({first + slash for first, slash, _ in names})
            page = "".join(f'<a href="{escape(link)}">{escape(link)}</a>\n' for link in links)
            self._answer(200, page.encode(), Content_Type="text/html")

    do_GET = do_HEAD = do_PUT = do_DELETE = _handle

    def _give(self, data: bytes) -> None:
        told = {"ETag": _tag(data), "Last_Modified": WHEN, "Accept_Ranges": "bytes"}
        told["Content_Type"] = "application/octet-stream"
        if wanted := RANGE.fullmatch(self.headers.get("Range") or ""):
            begin, end = int(wanted[1]), int(wanted[2] or len(data) - 1)
            part = data[begin : end + 1]
            told["Content_Range"] = f"bytes {begin}-{begin + len(part) - 1}/{len(data)}"
            self._answer(206, part, **told)
        else:
            self._answer(200, data, **told)


def _tag(data: bytes) -> str:
    return f'"{hashlib.md5(data).hexdigest()}"'


def _listing(objects: dict[str, bytes], bucket: str, query: dict[str, list[str]]) -> bytes:
    """What S3 lists of a bucket: objects, and what they have in common up to a delimiter."""
    prefix, delimiter = (query.get(name, [""])[0] for name in ("prefix", "delimiter"))
    keys = sorted(name.removeprefix(f"{bucket}/") for name in objects if name.startswith(bucket))
    keys = [key for key in keys if key.startswith(prefix)]
    shared = {
        prefix + key.removeprefix(prefix).partition(delimiter)[0] + delimiter
        for key in keys
        if delimiter and delimiter in key.removeprefix(prefix)
    }
    told = "".join(
        f"<Contents><Key>{escape(key)}</Key><LastModified>{ISO}</LastModified>"
        f"<ETag>{escape(_tag(objects[f'{bucket}/{key}']))}</ETag>"
        f"<Size>{len(objects[f'{bucket}/{key}'])}</Size></Contents>"
        for key in keys
        if not any(key.startswith(one) for one in shared)
    )
    told += "".join(
        f"<CommonPrefixes><Prefix>{escape(one)}</Prefix></CommonPrefixes>" for one in sorted(shared)
    )
    return (
        f'<?xml version="1.0"?><ListBucketResult><Name>{bucket}</Name><Prefix>{escape(prefix)}'
        f"</Prefix><KeyCount>{len(keys)}</KeyCount><IsTruncated>false</IsTruncated>{told}"
        "</ListBucketResult>"
    ).encode()


def _unchunked(data: bytes) -> bytes:
    """The bytes of a body in AWS's chunks, each behind its size."""
    out, at = b"", 0
    while at < len(data):
        end = data.index(b"\r\n", at)
        size = int(data[at:end].split(b";")[0], 16)
        out += data[end + 2 : end + 2 + size]
        if size == 0:
            break
        at = end + 2 + size + 2
    return out
