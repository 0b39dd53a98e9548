"""What a path of a command means: a place on this machine, or one that a URL leads to.

    gs://bucket/model     an object store; also s3://, az://, memory://, whatever fsspec has
    https://host/model/   a file, or a folder that its server lists
    hf://owner/name       a repository of the Hugging Face hub (`hub`)
    file:///model         a path

A mirror of what is read goes when its process ends. What is written to a URL is made in a stage on
this machine, the same every time, and sent once it is complete (`delivering`).
"""

from __future__ import annotations

import atexit
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from jentropy.errors import InputError, UnsupportedError, said

from . import hub
from .choosing import is_weights
from .contents import CONFIGS
from .entries import is_safe_path
from .remote import SECRET, Files, Remote, RemotePath, reaching, stands_for

URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://")
LOCAL = "file://"
WEB = ("http://", "https://")
SENDING = ".jentropy-sending"  # lies beside files until all of them are there
CACHE = "JENTROPY_CACHE"
MOST_FILES = 1_000_000
# What tells one version of an object from another, by the names that stores have for it.
VERSIONS = ("ETag", "etag", "generation", "md5Hash", "LastModified", "mtime", "modified", "created")
PACKAGES = {"gs": "gcsfs", "gcs": "gcsfs", "s3": "s3fs", "http": "aiohttp", "https": "aiohttp"}


def located(source: str | Path) -> Path:
    """The path of a source, where something is if it is a URL; see this module.

    Raises:
      UnsupportedError: a URL of a kind that is not known, or without the package that it needs.
      InputError: nothing at the URL, or what cannot be had.

    Example:
      >>> located("file:///models/llama").name
      'llama'
    """
    text = str(source)
    if not text:
        raise InputError("no such file or directory", file="''")
    if isinstance(source, RemotePath):
        return source
    if text.startswith(hub.SCHEME):
        return hub.snapshot(text)
    if URL.match(text) and not text.startswith(LOCAL):
        return mirror(text)
    return _local(source)


def resolve(source: str | Path) -> Path:
    """The path of a source, which is there; see this module.

    Raises:
      UnsupportedError, InputError: see `located`; nothing at this path.

    Example:
      >>> resolve(f"file://{__file__}").name
      'mirrors.py'
    """
    path = located(source)
    if not path.exists():
        raise InputError("no such file or directory", file=path)
    return path


def destination(path: str | Path) -> Path:
    """The path under which something is to appear; of a URL that of its stage.

    Raises:
      UnsupportedError: a URL that nothing can be written to.

    Example:
      >>> destination("out")
      PosixPath('out')
    """
    text = str(path)
    if not URL.match(text) or text.startswith(LOCAL):
        return _local(path)
    if text.startswith((*WEB, hub.SCHEME)):
        raise UnsupportedError(
            "destination", file=text, expected="a path or an object store", found="a source"
        )
    remote = connect(text)
    cache = os.environ.get(CACHE) or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "jentropy"
    )
    digest = hashlib.sha256(remote.url.encode()).hexdigest()[:16]
    stage = RemotePath(os.path.realpath(cache)) / digest / (remote.url.rpartition("/")[2] or "out")
    stands_for(stage, remote)
    return stage


def _local(path: str | Path) -> Path:
    text = str(path)
    if "\0" in text:
        raise InputError("path", expected="one without NUL", found=f"{text!r:.60}")
    return Path(unquote(urlsplit(text).path)) if text.startswith(LOCAL) else Path(path)


def connect(url: str) -> Remote:
    """What a URL leads to, not looked at yet.

    Raises:
      UnsupportedError: a kind that is not known, or whose package is not installed.
    """
    import fsspec

    plain, scheme = SECRET.sub("", url).rstrip("/"), url.partition("://")[0]
    try:
        system, place = fsspec.core.url_to_fs(url)
    except ImportError as error:
        package = PACKAGES.get(scheme)
        raise UnsupportedError(
            f"{scheme}:// needs {f'the package {package}' if package else said(error)}",
            file=plain,
            hint="install the extra 'remote'" if package else None,
        ) from error
    except Exception as error:  # of unknown kinds, and of credentials, each in its own way
        raise UnsupportedError(f"cannot be reached: {said(error)}", file=plain) from error
    return Remote(url=plain, system=system, place=place.rstrip("/"))


def listed(remote: Remote) -> Files:
    """The files that are there now; of a file itself one without a name.

    Raises:
      InputError: they cannot be listed, or have names that are no files here.
    """
    with reaching(remote.url):
        remote.system.invalidate_cache()
        try:
            found = _find(remote)
        except FileNotFoundError:
            return {}
        told: Files = {}
        for place, info in found.items():
            name = remote.system._strip_protocol(place).removeprefix(remote.place).lstrip("/")
            known = info if info.get("size") is not None else remote.system.info(place)
            told[name] = _told(known)
    for name in told:
        if name and not is_safe_path(name):
            raise InputError(
                "name of a file", file=remote.url, expected="one that may be used", found=repr(name)
            )
    if len(told) > MOST_FILES:
        raise InputError("files", file=remote.url, expected=f"at most {MOST_FILES}", found="more")
    return told


def _find(remote: Remote) -> Mapping[str, Any]:
    """What the file system tells of each file, by its path."""
    if remote.url.startswith(WEB) and is_weights(remote.url):  # which would be read as a folder
        return {remote.place: remote.system.info(remote.place)}
    return remote.system.find(remote.place, detail=True)


def _told(info: Mapping[str, Any]) -> tuple[int, str]:
    size = info.get("size")
    if size is None:
        raise InputError("bytes of the file", expected="a server that tells them", found="none")
    known = next((info[key] for key in VERSIONS if info.get(key)), "")
    return int(size), str(known.timestamp() if isinstance(known, datetime) else known)


def version(remote: Remote, name: str) -> tuple[int, str]:
    """Bytes and version of a file that is there now."""
    remote.system.invalidate_cache()
    return _told(remote.system.info(remote.place_of(name)))


def mirror(url: str) -> RemotePath:
    """What lies behind a URL, as a path; nothing of it is fetched yet.

    Raises:
      InputError: nothing is there, it cannot be reached, or is not whole.
      UnsupportedError: see `connect`.
    """
    remote = connect(url)
    files = listed(remote)
    if SENDING in files:
        raise InputError("not whole: it is being written, or that was given up", file=remote.url)
    if not files:
        with reaching(remote.url):  # which may say more of why
            remote.system.info(remote.place)
        raise InputError("no such file or directory", file=remote.url)
    folder = RemotePath(os.path.realpath(tempfile.mkdtemp(prefix="jentropy-")))
    atexit.register(shutil.rmtree, os.fspath(folder), ignore_errors=True)
    shown = folder
    if files.keys() == {""}:
        above, _, name = remote.url.rpartition("/")
        place = remote.place.rpartition("/")[0]
        remote = Remote(url=above, system=remote.system, place=place, alone=True)
        files, shown = {name: files[""]} | _beside(remote), folder / name
    files.pop("", None)  # what some stores have for a folder
    remote.files.update(files)
    stands_for(folder, remote)
    for above in {(folder / name).parent for name in files}:
        above.mkdir(parents=True, exist_ok=True)
    for name in files:
        os.close(os.open(folder / name, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o644))
    return shown


def _beside(remote: Remote) -> Files:
    """The configs that lie beside a single file, as far as they can be seen."""
    found: Files = {}
    for name in CONFIGS:
        try:
            found[name] = version(remote, name)
        except Exception:  # not there, or not for everybody
            continue
    return found


def expect_same(path: Path) -> None:
    """Raises InputError if what a path stands for is not what it was when it was opened."""
    if not isinstance(path, RemotePath):
        return
    remote = path.remote
    if remote.alone:
        with reaching(remote.url):
            now = {name: version(remote, name) for name in remote.files}
    else:
        now = listed(remote)
    for name, told in remote.files.items():
        if now.get(name) != told:
            raise InputError("file changed while it was read", file=remote.url_of(name))
