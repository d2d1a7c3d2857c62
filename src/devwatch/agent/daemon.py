"""The daemon: wires the loop to this host, ends it on a signal, and ensures that it is the only daemon of its node."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import os
import random
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Required, TextIO, TypedDict

from devwatch import __version__
from devwatch.agent.clock import Clock
from devwatch.agent.dryrun import DryRunNode
from devwatch.agent.listener import MonitorListener
from devwatch.agent.report import Log, Telemetry
from devwatch.agent.wiring import build_agent
from devwatch.config.file import BackgroundConfigFile, ConfigFile
from devwatch.core import exitstatus
from devwatch.core.errors import KubeletError, Unavailable
from devwatch.core.repeat import RepeatFilter
from devwatch.host.lock import Holder, NodeLock
from devwatch.host.systemd import Notifier, watchdog_interval
from devwatch.host.udev import UdevSource
from devwatch.kube.pods import Workload
from devwatch.observe.health import Health
from devwatch.observe.metrics import Metrics
from devwatch.observe.server import Server, routes

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator, Mapping

    from devwatch.agent.nodestatus import NodeApi
    from devwatch.agent.nodewatch import Watch
    from devwatch.agent.reconciler import Reconciler
    from devwatch.agent.registration import KubeletApi

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


class _Api(TypedDict, total=False):
    api: Required[NodeApi]
    watch: Watch
    workload: Workload
    kubelet: Callable[[], KubeletApi]


class Daemon:
    """The program of `devwatch run`: configuration, lock, HTTP server, loop and signals."""

    def __init__(self, options: Options, log: Log, *, environ: Mapping[str, str], out: TextIO) -> None:
        """Read the configuration. Raises `ConfigError`."""
        self._options, self._log, self._environ, self._out = options, log, environ, out
        file = ConfigFile(path=options.config)
        self._config = file.load()
        self._settings = BackgroundConfigFile(file, self._take_config)
        self._metrics = Metrics(__version__)
        self._notifier = Notifier.from_env(environ)
        self._ready = self._reloading = False
        self._reload_announced = True
        self._status = ""
        self._shortage = RepeatFilter()
        self._reconciler: Reconciler | None = None

    async def run(self) -> int:
        """Run until TERM or INT, or until `--once` is satisfied, and return the exit status. Raises `Unavailable` and `MemoryError`."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._handle_loop_exception)
        self._health = Health(sweep=self._config.sweep, last_cycle=loop.time())
        self._listener = MonitorListener(self._log, self._metrics)
        work = loop.create_task(self._work(loop))
        with _signals(
            loop,
            {signal.SIGTERM: work.cancel, signal.SIGINT: work.cancel, signal.SIGHUP: self._reload},
        ):
            status = await self._exit_status(work)
            self._notifier.stopping()
            self._log.info("daemon.stopped", status=status, capacity="kept")
        return status

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
        async with contextlib.AsyncExitStack() as stack:
            if not self._options.once:
                await self._reconcile(stack, loop)
                return exitstatus.DONE
            try:
                async with asyncio.timeout(ONCE_TIMEOUT):
                    await self._reconcile(stack, loop)
            except TimeoutError:
                self._log.error(
                    "node.patch_failed", node=self._options.node, error=self._once_failure(), gave_up_after=ONCE_TIMEOUT
                )
                return exitstatus.FAILED
            return exitstatus.DONE

    def _once_failure(self) -> str:
        """Return why the Node does not show the present devices after `ONCE_TIMEOUT`."""
        if self._reconciler is None:
            return f"another daemon holds the node: {self._health.waiting}"
        differs = self._health.differs
        return self._reconciler.publisher.failure or self._health.uncertain or differs or "the devices did not settle"

    async def _serve(self, stack: contextlib.AsyncExitStack, loop: asyncio.AbstractEventLoop) -> str:
        """Serve metrics and health, and return the address. Raises `Unavailable` where the port cannot be bound."""
        if self._options.listen is None:
            return "off"
        server = Server(routes(self._metrics, self._health, loop.time))
        stack.push_async_callback(server.close)
        host, port = await server.start(*self._options.listen)
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    async def _start(self, stack: contextlib.AsyncExitStack, loop: asyncio.AbstractEventLoop) -> str:
        """Bind the port and take the lock, and return the address.

        Another daemon that holds the node may also hold the port: after waiting for the lock, the port is tried a second time. A dry run
        continues without a port that was not given explicitly.
        """
        try:
            listening = await self._serve(stack, loop)
        except Unavailable as error:
            if self._options.dry_run and not self._options.listen_named:
                self._log.warning("metrics.off", reason=str(error))
                return "off"
            if not await self._take_lock(stack, loop):
                raise
            return await self._serve(stack, loop)
        await self._take_lock(stack, loop)
        return listening

    async def _reconcile(self, stack: contextlib.AsyncExitStack, loop: asyncio.AbstractEventLoop) -> None:
        listening = await self._start(stack, loop)
        reconciler = self._wire(stack, loop)
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
        self._listener.wake = reconciler.wake
        _tune_garbage_collection()
        await reconciler.run()

    async def _take_lock(self, stack: contextlib.AsyncExitStack, loop: asyncio.AbstractEventLoop) -> bool:
        """Wait until this is the only daemon of the node, and return whether it had to wait. A dry run writes nothing and takes no lock."""
        if self._options.dry_run:
            return False
        lock = NodeLock(self._options.node)
        stack.callback(lock.release)
        if not await lock.acquire(self._report_waiting, self._report_ignored):
            await _run_in_background(stack, self._regain(lock))
        waited, self._health.waiting = self._health.waiting is not None, None
        self._health.last_cycle = loop.time()
        return waited

    def _report_waiting(self, holder: Holder) -> None:
        self._health.waiting = str(holder)
        self._log.warning("daemon.waiting", node=self._options.node, holder_pid=holder.pid, holder_uid=holder.uid)

    def _report_ignored(self, holder: Holder) -> None:
        self._log.warning("lock.ignored", node=self._options.node, holder_pid=holder.pid, holder_uid=holder.uid)

    async def _regain(self, lock: NodeLock) -> None:
        """Take the lock once its untrusted holder has released it. Raises `Unavailable` where another daemon holds it then."""
        await lock.regain()
        self._log.info("lock.regained", node=self._options.node)

    def _wire(self, stack: contextlib.AsyncExitStack, loop: asyncio.AbstractEventLoop) -> Reconciler:
        source = UdevSource.open(listener=self._listener, loop=loop)
        stack.callback(source.close)
        self._reconciler = build_agent(
            source=source,
            **self._api(stack),
            settings=self._settings,
            config=self._config,
            node=self._options.node,
            telemetry=Telemetry(log=self._log, metrics=self._metrics, health=self._health),
            clock=Clock(now=loop.time, unix=time.time, jitter=random.SystemRandom().random),
            dry_run=bool(self._options.dry_run),
            once=self._options.once,
            cycled=self._cycled,
            heartbeat=watchdog_interval(self._environ),
        )
        return self._reconciler

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
        return {"api": node, "watch": node.watch, "workload": workload, "kubelet": self._kubelet}

    def _kubelet(self) -> KubeletApi:
        """Return the kubelet of this node. Raises `KubeletError` where the libraries for it are not installed."""
        try:
            from devwatch.kubelet.node import Kubelet  # noqa: PLC0415 - 7 MiB that only `publish: devicePlugin` needs
        except ImportError as error:
            raise KubeletError(
                f"publish: devicePlugin needs {error.name}", hint="pip install 'devwatch[kubelet]'"
            ) from error
        return Kubelet(plugins=self._options.device_plugin_dir, folder=self._options.kubelet_dir)

    def _reload(self) -> None:
        """Reload the configuration; before the loop exists this is not needed."""
        if self._reconciler is None:
            return
        if self._ready:
            self._reloading, self._reload_announced = True, self._notifier.reloading()
        self._settings.reload()

    def _take_config(self) -> None:
        if self._reconciler is not None:
            self._reconciler.wake("config")

    def _cycled(self) -> None:
        """Notify systemd after each cycle: the watchdog, the status line, and READY after the first certain scan and after each reload.

        A notification that does not fit into systemd's queue is sent again on the next cycle.
        """
        self._notifier.watchdog()
        reloaded = self._reloading and not self._settings.busy
        if reloaded or (not self._ready and self._health.uncertain is None):
            self._notify_ready()
        status = self._summary()
        if status != self._status and self._notifier.status(status):
            self._status = status

    def _notify_ready(self) -> None:
        """Notify systemd of the end of the start or of a reload; systemd must have received RELOADING first."""
        self._reload_announced = self._reload_announced or self._notifier.reloading()
        if self._reload_announced and self._notifier.ready():
            self._ready, self._reloading = True, False

    def _summary(self) -> str:
        """Return one line for `systemctl status`."""
        if self._reconciler is None:
            return ""
        figures = self._reconciler.figures.by_name.values()
        present = sum(figure.present > 0 for figure in figures)
        uncertain = "the scan of the devices is uncertain" if self._health.uncertain else ""
        return "; ".join(
            filter(
                None, (f"{present} of {len(figures)} resources present", uncertain, self._reconciler.publisher.outage)
            )
        )


def _tune_garbage_collection() -> None:
    """Collect cyclic garbage often: that of a storm of uevents would otherwise stay for minutes, and the memory would never be returned.

    All imported modules live as long as the program. They are frozen, that is, hidden from the collector; the few other objects are then
    collected often at no measurable cost.
    """
    gc.freeze()
    gc.set_threshold(200, 5, 2)


async def _run_in_background(stack: contextlib.AsyncExitStack, work: Coroutine[Any, Any, None]) -> None:
    """Run `work` until the stack unwinds. If it fails, everything on the stack is cancelled, and the failure is raised in a group."""
    tasks = await stack.enter_async_context(asyncio.TaskGroup())
    stack.callback(tasks.create_task(work).cancel)


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
