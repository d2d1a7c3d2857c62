"""The composition root: wires the loop to this host, ends it on a signal, and is the only daemon of its node."""

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
from typing import TYPE_CHECKING, Any, Literal, Required, TextIO, TypedDict

from devwatch import __version__
from devwatch.agent.clock import Clock
from devwatch.agent.dryrun import DryRunNode
from devwatch.agent.listener import MonitorListener
from devwatch.agent.report import Log, Telemetry
from devwatch.agent.wiring import build_agent
from devwatch.config.file import BackgroundConfigFile, ConfigFile
from devwatch.core.errors import Unavailable
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
    from pathlib import Path

    from devwatch.agent.nodestatus import NodeApi
    from devwatch.agent.nodewatch import Watch
    from devwatch.agent.reconciler import Reconciler

ONCE_TIMEOUT = 30.0
"""Seconds that `--once` waits for the Node to show what is present."""
CLOSE_TIMEOUT = 1.0
"""Seconds for saying goodbye to the API server; TERM ends the daemon within two."""

_SHORTAGES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""Why a connection cannot be taken just now; asyncio tries again every second (`selector_events`, `_accept_connection`)."""

DryRun = Literal["client", "server"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the command line asks of the daemon."""

    config: Path
    node: str
    kubeconfig: str | None = None
    dry_run: DryRun | None = None
    once: bool = False
    listen: tuple[str, int] | None = None
    listen_named: bool = True
    """Whether somebody asked for this address."""


class _Api(TypedDict, total=False):
    api: Required[NodeApi]
    watch: Watch
    workload: Workload


class Daemon:
    """Everything that `devwatch run` consists of."""

    def __init__(self, options: Options, log: Log, *, environ: Mapping[str, str], out: TextIO) -> None:
        """Read the configuration. Raises `ConfigError`."""
        self._options, self._log, self._environ, self._out = options, log, environ, out
        file = ConfigFile(path=options.config)
        self._config = file.load()
        self._settings = BackgroundConfigFile(file, self._take_config)
        self._metrics = Metrics(__version__)
        self._notifier = Notifier.from_env(environ)
        self._ready = self._reloading = False
        self._announced = True
        self._status = ""
        self._shortage = RepeatFilter()
        self._reconciler: Reconciler | None = None

    async def run(self) -> int:
        """Run until TERM, INT, or what `--once` waits for, and return the exit status. Raises `Unavailable` and `MemoryError`."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._stray)
        self._health = Health(sweep=self._config.sweep, last_cycle=loop.time())
        self._listener = MonitorListener(self._log, self._metrics)
        work = loop.create_task(self._work(loop))
        with _signals(
            loop,
            {signal.SIGTERM: work.cancel, signal.SIGINT: work.cancel, signal.SIGHUP: self._reload},
        ):
            status = await self._outcome(work)
            self._notifier.stopping()
            self._log.info("daemon.stopped", status=status, left="what is advertised stays")
        return status

    def _stray(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Take what asyncio can raise to nobody. No descriptor for a connection is a shortage of this host and ends by itself."""
        error = context.get("exception")
        if not isinstance(error, OSError) or error.errno not in _SHORTAGES:
            loop.default_exception_handler(context)
        elif self._shortage.should_log("connection"):
            reason = f"nobody can ask for metrics and health: {os.strerror(error.errno)}"
            self._log.warning("host.limited", reason=reason, times=self._shortage.repeats)

    async def _outcome(self, work: asyncio.Task[int]) -> int:
        """Return the exit status. Whatever nobody expected is logged with its traceback: there is no half-dead daemon."""
        try:
            return await work
        except asyncio.CancelledError:
            return 1 if self._options.once else 0
        except (Unavailable, MemoryError):
            raise
        except Exception as error:  # noqa: BLE001 - it is logged, and ends the program
            known = (Unavailable, MemoryError)
            expected, unexpected = error.split(known) if isinstance(error, ExceptionGroup) else (None, error)
            if unexpected is None and expected is not None:
                raise expected.exceptions[0] from None
            self._log.error("daemon.failed", error=repr(error), exc_info=error)
            return 1

    async def _work(self, loop: asyncio.AbstractEventLoop) -> int:
        async with contextlib.AsyncExitStack() as stack:
            if not self._options.once:
                await self._reconcile(stack, loop)
                return 0
            try:
                async with asyncio.timeout(ONCE_TIMEOUT):
                    await self._reconcile(stack, loop)
            except TimeoutError:
                self._log.error(
                    "node.patch_failed", node=self._options.node, error=self._unfinished(), gave_up_after=ONCE_TIMEOUT
                )
                return 1
            return 0

    def _unfinished(self) -> str:
        """Return why the Node does not show what is present."""
        if self._reconciler is None:
            return f"another daemon holds the node: {self._health.waiting}"
        differs = self._health.differs
        return self._reconciler.publisher.failure or self._health.uncertain or differs or "the devices did not settle"

    async def _serve(self, stack: contextlib.AsyncExitStack, loop: asyncio.AbstractEventLoop) -> str:
        """Answer for metrics and health, and return where. Raises `Unavailable` where the port cannot be had."""
        if self._options.listen is None:
            return "off"
        server = Server(routes(self._metrics, self._health, loop.time))
        stack.push_async_callback(server.close)
        host, port = await server.start(*self._options.listen)
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    async def _start(self, stack: contextlib.AsyncExitStack, loop: asyncio.AbstractEventLoop) -> str:
        """Serve and take the lock, and return where is served.

        While another daemon holds the node it may also hold the port, so that one is asked for again afterwards. A dry run does
        without a port that nobody named.
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
        _sweep_often()
        await reconciler.run()

    async def _take_lock(self, stack: contextlib.AsyncExitStack, loop: asyncio.AbstractEventLoop) -> bool:
        """Wait until no other daemon writes to this Node, and return whether one did; a dry run writes nothing and needs no lock."""
        if self._options.dry_run:
            return False
        lock = NodeLock(self._options.node)
        stack.callback(lock.release)
        if not await lock.acquire(self._wait, self._ignore):
            await _beside(stack, self._regain(lock))
        waited, self._health.waiting = self._health.waiting is not None, None
        self._health.last_cycle = loop.time()
        return waited

    def _wait(self, holder: Holder) -> None:
        self._health.waiting = str(holder)
        self._log.warning("daemon.waiting", node=self._options.node, holder_pid=holder.pid, holder_uid=holder.uid)

    def _ignore(self, holder: Holder) -> None:
        self._log.warning("lock.ignored", node=self._options.node, holder_pid=holder.pid, holder_uid=holder.uid)

    async def _regain(self, lock: NodeLock) -> None:
        """Hold the lock after all once the squatter has gone. Raises `Unavailable` where another daemon holds it then."""
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
        """Return the edge to the API server. A dry run of the client imports no API client, and only the daemon itself evicts."""
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
        return {"api": node, "watch": node.watch, "workload": Workload(requests=node, node=self._options.node)}

    def _reload(self) -> None:
        """Read the configuration again; before the first turn of the loop it is read anyway."""
        if self._reconciler is None:
            return
        if self._ready:
            self._reloading, self._announced = True, self._notifier.reloading()
        self._settings.reload()

    def _take_config(self) -> None:
        if self._reconciler is not None:
            self._reconciler.wake("config")

    def _cycled(self) -> None:
        """Tell systemd that the loop turns, and how things are: it is ready once a look was certain, and again after a reload.

        What its full queue refuses is told again on the next turn.
        """
        self._notifier.watchdog()
        reloaded = self._reloading and not self._settings.busy
        if reloaded or (not self._ready and self._health.uncertain is None):
            self._tell_ready()
        status = self._summary()
        if status != self._status and self._notifier.status(status):
            self._status = status

    def _tell_ready(self) -> None:
        """Tell the end of the start or of a reload, whose beginning has to be known first."""
        self._announced = self._announced or self._notifier.reloading()
        if self._announced and self._notifier.ready():
            self._ready, self._reloading = True, False

    def _summary(self) -> str:
        """Return one line for `systemctl status`."""
        if self._reconciler is None:
            return ""
        figures = self._reconciler.figures.by_name.values()
        present = sum(figure.present > 0 for figure in figures)
        uncertain = "the devices cannot be seen for certain" if self._health.uncertain else ""
        return "; ".join(
            filter(
                None, (f"{present} of {len(figures)} resources present", uncertain, self._reconciler.publisher.outage)
            )
        )


def _sweep_often() -> None:
    """Keep garbage from piling up: cyclic garbage of a storm would otherwise stay for minutes, and its memory for ever.

    What was imported until now lives as long as the program; hidden from the collector, it leaves so little that looking through all of it
    again and again costs nothing that can be measured.
    """
    gc.freeze()
    gc.set_threshold(200, 5, 2)


async def _beside(stack: contextlib.AsyncExitStack, work: Coroutine[Any, Any, None]) -> None:
    """Do `work` until the stack unwinds. Where it fails, all that runs on the stack is cancelled, and the failure raised in a group."""
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
    """Have the loop call the handlers. Afterwards the former ones are back, without a moment in which a signal finds none of both."""
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
