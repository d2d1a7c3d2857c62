"""The start of the daemon: the port of metrics and health, and the lock that makes it the only daemon of its node."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from devwatch.core.errors import Unavailable
from devwatch.host.lock import Holder, NodeLock
from devwatch.observe.server import Server, routes

if TYPE_CHECKING:
    import contextlib
    from collections.abc import Callable, Coroutine

    from devwatch.agent.daemon import Options
    from devwatch.agent.report import Telemetry


class Startup:
    """Binds the port and takes the lock; both are released when the stack unwinds."""

    def __init__(
        self, options: Options, telemetry: Telemetry, stack: contextlib.AsyncExitStack, now: Callable[[], float]
    ) -> None:
        """Do nothing yet."""
        self._options, self._telemetry, self._stack, self._now = options, telemetry, stack, now
        self._log, self._health = telemetry.log, telemetry.health

    async def run(self) -> str:
        """Bind the port and take the lock, and return the address. Raises `Unavailable`.

        Another daemon that holds the node may also hold the port: after waiting for the lock, the port is tried a second time. A dry run
        continues without a port that was not given explicitly.
        """
        try:
            listening = await self._serve()
        except Unavailable as error:
            if self._options.dry_run and not self._options.listen_named:
                self._log.warning("metrics.off", reason=str(error))
                return "off"
            if not await self._take_lock():
                raise
            return await self._serve()
        await self._take_lock()
        return listening

    async def _serve(self) -> str:
        """Serve metrics and health, and return the address. Raises `Unavailable` where the port cannot be bound."""
        if self._options.listen is None:
            return "off"
        server = Server(routes(self._telemetry.metrics, self._health, self._now))
        self._stack.push_async_callback(server.close)
        host, port = await server.start(*self._options.listen)
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    async def _take_lock(self) -> bool:
        """Wait until this is the only daemon of the node, and return whether it had to wait. A dry run writes nothing and takes no lock."""
        if self._options.dry_run:
            return False
        lock = NodeLock(self._options.node)
        self._stack.callback(lock.release)
        if not await lock.acquire(self._report_waiting, self._report_ignored):
            await _run_in_background(self._stack, self._regain(lock))
        waited, self._health.waiting = self._health.waiting is not None, None
        self._health.last_cycle = self._now()
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


async def _run_in_background(stack: contextlib.AsyncExitStack, work: Coroutine[Any, Any, None]) -> None:
    """Run `work` until the stack unwinds. If it fails, everything on the stack is cancelled, and the failure is raised in a group."""
    tasks = await stack.enter_async_context(asyncio.TaskGroup())
    stack.callback(tasks.create_task(work).cancel)
