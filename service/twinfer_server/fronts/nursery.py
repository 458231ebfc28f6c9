"""The nursery: a process that has imported all that a front needs and forks fronts from itself.

Importing takes seconds and 160 MB, once for all of them: a forked process shares what it does not change, and a front that has
crashed is replaced at once. The device process itself, with its threads, could not fork.
"""

import asyncio
import gc
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Sequence

from . import front

START = "from twinfer_server.fronts.nursery import main; main()"
FDS = 3
_PID = struct.Struct("<i")


class NurseryEnded(RuntimeError):
    """The process ended, or could not fork."""


class Nursery:
    """The nursery as the device process sees it. Event loop only."""

    def __init__(self) -> None:
        """Begin without the process: the first front starts it."""
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._asking = asyncio.Lock()

    async def fork(self, fds: Sequence[int]) -> int:
        """Fork a front that has these descriptors, its link and its memory for rows and for answers; gives its process number.

        Raises NurseryEnded; the next call starts the process anew.
        """
        async with self._asking:
            ours = self._socket or self._start()
            try:
                socket.send_fds(ours, [b"fork"], list(fds))
                answer = await asyncio.get_running_loop().sock_recv(ours, _PID.size)
            except OSError:
                answer = b""
            if not answer:
                self.close()
                raise NurseryEnded("the process that starts the fronts has ended")
            pid: int = _PID.unpack(answer)[0]
            return pid

    def close(self) -> None:
        """End the process; the fronts do not depend on it."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _start(self) -> socket.socket:
        self._socket, theirs = socket.socketpair()
        self._socket.setblocking(False)
        # A thread of torch's own for every core, in every process, would be too many; and a process with threads does not fork.
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-P", "-c", START, str(theirs.fileno())]
        with theirs:
            self._process = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=environment
            )
        return self._socket


def main() -> None:
    """Fork a front for every three descriptors that come over the socket whose descriptor is the argument, until it closes."""
    # Who ends the service tells the device process; its fronts have rows in hand, and end when it says so. They inherit this.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the fronts; their links tell of their end
    gc.collect()
    gc.freeze()  # a collection would write to what is shared
    with socket.socket(fileno=int(sys.argv[1])) as ours:
        while True:
            asked, fds, _, _ = socket.recv_fds(ours, 16, FDS)
            if not asked:
                return
            pid = os.fork()
            if not pid:
                ours.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                front.main(*fds)
            for fd in fds:
                os.close(fd)
            ours.send(_PID.pack(pid))
