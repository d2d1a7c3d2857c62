"""The daemon: wires the loop to this host, and ends it on a signal."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import random
import signal
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Required, TextIO, TypedDict

from devwatch import __version__
from devwatch.agent.clock import Clock
from devwatch.agent.dra import Dra
from devwatch.agent.dryrun import DryRunNode
from devwatch.agent.listener import MonitorListener
from devwatch.agent.report import Log, Telemetry
from devwatch.agent.service import SystemdService
from devwatch.agent.startup import Startup
from devwatch.agent.wiring import build_agent
from devwatch.config.file import BackgroundConfigFile, ConfigFile
from devwatch.core import exitstatus
from devwatch.core.errors import KubeletError, Unavailable
from devwatch.core.names import DRIVER
from devwatch.core.repeat import RepeatFilter
from devwatch.host.memory import collect_garbage_often
from devwatch.host.systemd import Notifier, watchdog_interval
from devwatch.host.udev import UdevSource
from devwatch.kube.pods import Workload
from devwatch.observe.health import Health
from devwatch.observe.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator, Mapping

    from devwatch.agent.dra import DraParts
    from devwatch.agent.nodestatus import NodeApi
    from devwatch.agent.nodewatch import Watch
    from devwatch.agent.reconciler import Reconciler
    from devwatch.agent.registration import KubeletApi
    from devwatch.kube.nodes import KubeNode

ONCE_TIMEOUT = 30.0
"""Seconds that `--once` waits for the Node to show the present devices."""
CLOSE_TIMEOUT = 1.0
"""Seconds for closing the connections to the API server; TERM must end the daemon within two."""

_SHORTAGES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""Errors for which asyncio cannot accept a connection now and tries again every second (`selector_events`, `_accept_connection`)."""

DryRun = Literal["client", "server"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The options of `devwatch run`."""

    config: Path
    node: str
    kubeconfig: str | None = None
    dry_run: DryRun | None = None
    once: bool = False
    listen: tuple[str, int] | None = None
    listen_named: bool = True
    """Whether the address was given explicitly, rather than by default."""
    kubelet_dir: Path = Path("/var/lib/kubelet")
    device_plugin_dir: Path = Path("/var/lib/kubelet/device-plugins")
    cdi_dir: Path = Path("/var/run/cdi")

    @property
    def claims(self) -> Path:
        """The record of the prepared claims, which outlives the daemon."""
        return self.kubelet_dir / "plugins" / DRIVER / "claims.json"

    def has_claims(self) -> bool:
        """Return whether there is a record of claims that this user may see; without the folders of the kubelet there is nothing to do."""
        return os.path.exists(self.claims)  # noqa: PTH110 - before Python 3.14 that of Path raises where a folder is closed to the user


class _Api(TypedDict, total=False):
    api: Required[NodeApi]
    watch: Watch
    workload: Workload
    kubelet: Callable[[], KubeletApi]
    dra: Dra


class Daemon:
    """The program of `devwatch run`: configuration, signals, exit status, and the wiring of the loop to this host."""

    def __init__(self, options: Options, log: Log, *, environ: Mapping[str, str], out: TextIO) -> None:
        """Read the configuration. Raises `ConfigError`."""
        self._options, self._log, self._environ, self._out = options, log, environ, out
        file = ConfigFile(path=options.config)
        self._config = file.load()
        self._settings = BackgroundConfigFile(file, self._take_config)
        self._metrics = Metrics(__version__)
        self._notifier = Notifier.from_env(environ)
        self._shortage = RepeatFilter()
        self._reconciler: Reconciler | None = None

    async def run(self) -> int:
        """Run until TERM or INT, or until `--once` is satisfied, and return the exit status. Raises `Unavailable` and `MemoryError`."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._handle_loop_exception)
        self._health = Health(sweep=self._config.sweep, last_cycle=loop.time())
        self._telemetry = Telemetry(log=self._log, metrics=self._metrics, health=self._health)
        self._clock = Clock(now=loop.time, unix=time.time, jitter=random.SystemRandom().random)
        self._service = SystemdService(self._notifier, self._health)
        work = loop.create_task(self._work(loop))
        end = partial(self._end, work)
        with _signals(loop, {signal.SIGTERM: end, signal.SIGINT: end, signal.SIGHUP: self._reload}):
            status = await self._exit_status(work)
            self._notifier.stopping()
            self._log.info("daemon.stopped", status=status, capacity="kept")
        return status

    def _end(self, work: asyncio.Task[int]) -> None:
        if self._reconciler is None:
            work.cancel()
        else:
            self._reconciler.end(work.cancel)

    def _handle_loop_exception(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Handle an exception without an awaiting caller. A shortage of descriptors for connections is reported; it ends by itself."""
        error = context.get("exception")
        if not isinstance(error, OSError) or error.errno not in _SHORTAGES:
            loop.default_exception_handler(context)
        elif self._shortage.should_log("connection"):
            reason = f"metrics and health cannot be served: {os.strerror(error.errno)}"
            self._log.warning("host.limited", reason=reason, times=self._shortage.repeats)

    async def _exit_status(self, work: asyncio.Task[int]) -> int:
        """Wait for the daemon to end and return its exit status.

        Any unexpected exception is logged with its traceback and ends the program, so that a daemon never keeps running with a part failed.
        """
        try:
            return await work
        except asyncio.CancelledError:
            return exitstatus.FAILED if self._options.once else exitstatus.DONE
        except (Unavailable, MemoryError):
            raise
        except Exception as error:  # noqa: BLE001 - it is logged, and ends the program
            known = (Unavailable, MemoryError)
            expected, unexpected = error.split(known) if isinstance(error, ExceptionGroup) else (None, error)
            if unexpected is None and expected is not None:
                raise expected.exceptions[0] from None
            self._log.error("daemon.failed", error=repr(error), exc_info=error)
            return exitstatus.FAILED

    async def _work(self, loop: asyncio.AbstractEventLoop) -> int:
        """Reconcile, with `--once` for at most `ONCE_TIMEOUT`, and return the exit status."""
        async with contextlib.AsyncExitStack() as stack:
            limit = asyncio.timeout(ONCE_TIMEOUT if self._options.once else None)
            try:
                async with limit:
                    await self._reconcile(stack, loop)
            except TimeoutError:
                if not limit.expired():
                    raise
                error, node = self._once_failure(), self._options.node
                self._log.error("node.patch_failed", node=node, error=error, gave_up_after=ONCE_TIMEOUT)
                return exitstatus.FAILED
            return exitstatus.DONE

    def _once_failure(self) -> str:
        """Return why the Node does not show the present devices after `ONCE_TIMEOUT`."""
        if self._reconciler is None:
            return f"another daemon holds the node: {self._health.waiting}"
        differs = self._health.differs
        return self._reconciler.publisher.failure or self._health.uncertain or differs or "the devices did not settle"

    async def _reconcile(self, stack: contextlib.AsyncExitStack, loop: asyncio.AbstractEventLoop) -> None:
        """Start, and run the loop until it ends: with `--once`, else never."""
        listening = await Startup(self._options, self._telemetry, stack, loop.time).run()
        self._reconciler = self._wire(stack, loop)
        names = [rule.name for rule in self._config.for_node(self._options.node)]
        self._log.info(
            "daemon.started",
            version=__version__,
            node=self._options.node,
            config=str(self._options.config),
            resources=names,
            listen=listening,
            dry_run=self._options.dry_run or "no",
        )
        collect_garbage_often()
        await self._reconciler.run()

    def _wire(self, stack: contextlib.AsyncExitStack, loop: asyncio.AbstractEventLoop) -> Reconciler:
        listener = MonitorListener(self._log, self._metrics)
        source = UdevSource.open(listener=listener, loop=loop)
        stack.callback(source.close)
        reconciler = build_agent(
            source=source,
            **self._api(stack),
            settings=self._settings,
            config=self._config,
            node=self._options.node,
            telemetry=self._telemetry,
            clock=self._clock,
            dry_run=bool(self._options.dry_run),
            once=self._options.once,
            cycled=self._cycled,
            heartbeat=watchdog_interval(self._environ),
        )
        listener.wake = reconciler.wake
        return reconciler

    def _api(self, stack: contextlib.AsyncExitStack) -> _Api:
        """Return the API to use. `--dry-run=client` imports no API client; a dry run and `--once` neither watch nor evict."""
        if self._options.dry_run == "client":
            return {"api": DryRunNode(self._out)}
        from devwatch.kube.credentials import Credentials  # noqa: PLC0415 - 20 MiB that a dry run of the client does not need
        from devwatch.kube.nodes import KubeNode  # noqa: PLC0415 - 20 MiB that a dry run of the client does not need

        credentials = Credentials(kubeconfig=self._options.kubeconfig, environ=self._environ)
        node = KubeNode(self._options.node, credentials, version=__version__, dry_run=self._options.dry_run == "server")
        stack.push_async_callback(_close, node.close)
        if self._options.dry_run:
            return {"api": DryRunNode(self._out, node)}
        if self._options.once:
            return {"api": node}
        workload = Workload(requests=node, node=self._options.node)
        dra = Dra(partial(self._dra, node), recorded=self._options.has_claims)
        return {"api": node, "watch": node.watch, "workload": workload, "kubelet": self._kubelet, "dra": dra}

    def _kubelet(self) -> KubeletApi:
        """Return the kubelet of this node. Raises `KubeletError` where the libraries for it are not installed."""
        try:
            from devwatch.kubelet.node import Kubelet  # noqa: PLC0415 - 7 MiB that only `publish: devicePlugin` needs
        except ImportError as error:
            raise KubeletError(
                f"publish: devicePlugin needs {error.name}", hint="pip install 'devwatch[kubelet]'"
            ) from error
        return Kubelet(plugins=self._options.device_plugin_dir, folder=self._options.kubelet_dir)

    def _dra(self, node: KubeNode) -> DraParts:
        """Return the DRA driver of this node."""
        from devwatch.agent.drahost import build_dra  # noqa: PLC0415 - only `publish: dra` needs it

        return build_dra(self._options, node, self._options.has_claims, self._telemetry, self._clock)

    def _reload(self) -> None:
        """Begin to reload the configuration. Before the loop exists this is not needed: its first cycle reads a changed file."""
        if self._reconciler is not None:
            self._service.reload()
            self._settings.reload()

    def _take_config(self) -> None:
        """Wake the loop to take the configuration that was read."""
        if self._reconciler is not None:
            self._reconciler.wake("config")

    def _cycled(self) -> None:
        """Notify systemd after a cycle of the loop."""
        if self._reconciler is not None:
            outage, loading = self._reconciler.publisher.outage, self._settings.busy
            self._service.cycled(self._reconciler.figures, outage=outage, loading=loading)


async def _close(close: Callable[[], Coroutine[Any, Any, None]]) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(CLOSE_TIMEOUT):
            await close()


@contextlib.contextmanager
def _signals(
    loop: asyncio.AbstractEventLoop, handlers: Mapping[signal.Signals, Callable[[], object]]
) -> Iterator[None]:
    """Let the loop call the handlers. Restore the former ones at exit, with the signals blocked, so that none arrives without a handler."""
    former = {number: signal.getsignal(number) for number in handlers}
    for number, handler in handlers.items():
        loop.add_signal_handler(number, handler)
    try:
        yield
    finally:
        held = signal.pthread_sigmask(signal.SIG_BLOCK, handlers)
        for number, before in former.items():
            loop.remove_signal_handler(number)
            signal.signal(number, before)
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
