"""Import kubernetes_asyncio without its generated models, and keep its copies of secrets off the disk."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
import os
import sys
import types
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_UNUSED = {"urllib3": "util", "dateutil.parser": "parse", "multiprocessing.pool": "ThreadPool"}
"""What kubernetes_asyncio imports for `get_basic_auth_token`, the dates of its models, and `async_req`: none of our requests uses them."""


def _lean_import() -> None:
    """Prepare kubernetes_asyncio for an import without its generated models.

    Its packages import 700 model classes and every API group: 40 MiB that no request of ours uses, since our bodies are plain
    dicts and responses are read as JSON. With empty packages in their place, the three modules that matter import unchanged.
    `_import_client` falls back to the ordinary import.
    """
    spec = None if "kubernetes_asyncio" in sys.modules else importlib.util.find_spec("kubernetes_asyncio")
    if spec is None or spec.origin is None:
        return
    root = Path(spec.origin).parent
    for name in ("kubernetes_asyncio", "kubernetes_asyncio.client", "kubernetes_asyncio.client.models"):
        package = types.ModuleType(name)
        package.__path__ = [str(root.joinpath(*name.split(".")[1:]))]
        sys.modules[name] = package
    client = sys.modules["kubernetes_asyncio.client"]
    sys.modules["kubernetes_asyncio"].client = client  # type: ignore[attr-defined]  # the import system does this for a real package
    client.models = sys.modules["kubernetes_asyncio.client.models"]  # type: ignore[attr-defined]  # as above
    from kubernetes_asyncio.client.api_client import ApiClient  # noqa: PLC0415 - only now can it be imported alone
    from kubernetes_asyncio.client.configuration import Configuration  # noqa: PLC0415 - as above

    client.ApiClient, client.Configuration = ApiClient, Configuration  # type: ignore[attr-defined]  # kubernetes_asyncio.config imports these two


@contextlib.contextmanager
def _without_unused() -> Iterator[None]:
    """Hide the modules of `_UNUSED` during an import: 3.4 MiB. Whatever else imports them afterwards gets the real ones."""
    hidden = [name for name in _UNUSED if name not in sys.modules]
    for name in hidden:
        sys.modules[name] = types.ModuleType(name)
        setattr(sys.modules[name], _UNUSED[name], None)
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


@contextlib.contextmanager
def _without_certificates() -> Iterator[None]:
    """Hide the system's CA certificates during an import.

    aiohttp loads all of them into a TLS context on import: 2 MiB, and a tenth of the start-up time. Each of our clients has its own.
    """
    names = ("SSL_CERT_FILE", "SSL_CERT_DIR")
    held = {name: os.environ.get(name) for name in names}
    os.environ |= dict.fromkeys(names, os.devnull)
    try:
        yield
    finally:
        for name, value in held.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def _ensure_home() -> None:
    """Set HOME for a uid without a name and without HOME, as containers have: the library looks for a home on import."""
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = "/"


def _import_client() -> None:
    _ensure_home()
    try:
        with _without_certificates(), _without_unused():
            _lean_import()
            importlib.import_module("kubernetes_asyncio.config")
    except MemoryError:  # the ordinary import needs more of it
        raise
    except Exception as error:  # noqa: BLE001 - whatever a release breaks; the ordinary import below raises by itself
        for name in [name for name in sys.modules if name.partition(".")[0] == "kubernetes_asyncio"]:
            del sys.modules[name]
        warnings.warn(
            f"this kubernetes_asyncio cannot be imported without its models ({error}): 40 MiB more", stacklevel=2
        )


_import_client()

from kubernetes_asyncio.client.api_client import ApiClient  # noqa: E402 - after the empty packages are in place
from kubernetes_asyncio.client.configuration import Configuration  # noqa: E402 - as above
from kubernetes_asyncio.config import ConfigException, kube_config  # noqa: E402 - as above
from kubernetes_asyncio.config.exec_provider import ExecProvider  # noqa: E402 - as above

__all__ = ("ApiClient", "ConfigException", "Configuration", "ExecProvider", "kube_config")


def copy_to_memory(content: str | bytes) -> str:
    """Return the path of a copy in memory, for functions that take only paths: there may be no writable disk."""
    descriptor = os.memfd_create("devwatch")
    path = f"/proc/self/fd/{descriptor}"
    kube_config._temp_files[path] = path  # noqa: SLF001 - for `remove_copies`
    with open(descriptor, "wb", closefd=False) as file:
        file.write(content.encode() if isinstance(content, str) else content)
    return path


def remove_copies() -> None:
    """Remove the copies of keys and certificates: a client reads them only once."""
    copies = kube_config._temp_files  # noqa: SLF001 - as `copy_to_memory`
    while copies:
        os.close(int(copies.popitem()[0].rpartition("/")[2]))


def _write_copy(self: kube_config.FileOrData, content: str | bytes) -> str:  # noqa: ARG001 - the signature of the library
    return copy_to_memory(content)


def _patch_library() -> None:
    """Replace what the library does in an unsafe way."""
    # The library writes keys and certificates to the disk, and leaves the files open (kubernetes-client/python issue 1531).
    kube_config.FileOrData._create_temp_file_with_content = _write_copy  # type: ignore[method-assign]  # noqa: SLF001 - it has no setting for it
    # The library logs whole users of a kubeconfig, with the environment of their plugins. It raises the same errors as well.
    logger = logging.getLogger("kubernetes_asyncio")
    logger.addHandler(logging.NullHandler())
    logger.propagate = False


_patch_library()
