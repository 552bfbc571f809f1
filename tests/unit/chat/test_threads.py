"""Work in threads: its order, its errors, and its end."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from raftdiff.chat.threads import concurrently, within


def test_work_in_threads_keeps_its_order_and_its_first_error() -> None:
    barrier = threading.Barrier(3)  # passes only when three run at once

    def together(item: int) -> int:
        barrier.wait(timeout=60)
        return item * item

    assert list(concurrently(together, range(6), workers=3)) == [0, 1, 4, 9, 16, 25]
    begun: list[int] = []

    def fails(item: int) -> int:
        begun.append(item)
        time.sleep(0.001)
        raise ZeroDivisionError(str(item))

    with pytest.raises(ZeroDivisionError, match="0"):
        list(concurrently(fails, range(1000), workers=1))
    assert len(begun) < 1000, "those not yet begun never begin"


def test_what_came_before_an_error_is_not_lost() -> None:
    def fails(item: int) -> int:
        if item == 3:
            raise ZeroDivisionError
        return item

    came: list[int] = []
    with pytest.raises(ZeroDivisionError):
        came.extend(concurrently(fails, range(9), workers=2))
    assert came == [0, 1, 2]


def test_a_call_has_its_time() -> None:
    free = threading.Event()
    with pytest.raises(TimeoutError, match=r"no whole reply within 0\.01 s"):
        within(0.01, free.wait)
    free.set()
    assert within(60.0, free.wait) is True
    with pytest.raises(ZeroDivisionError):
        within(60.0, lambda: 1 // 0)


HANGING = """
import signal, socket
signal.signal(signal.SIGINT, signal.default_int_handler)  # a program begun in the background ignores it
from raftdiff.chat.server import ChatServer
from raftdiff.chat.asking import Asking
silent = socket.create_server(("127.0.0.1", 0))
chat = ChatServer(f"http://127.0.0.1:{silent.getsockname()[1]}/v1", "judge", timeout=3600)
try:
    print("asking", flush=True)
    Asking(chat, "{x}", workers=4).replies([{"x": str(n)} for n in range(8)])
except KeyboardInterrupt:
    print("stopped")
"""


@pytest.mark.skipif(os.name != "posix", reason="signals as on POSIX")
def test_an_interrupt_ends_the_program_while_a_server_hangs() -> None:
    with subprocess.Popen([sys.executable, "-c", HANGING], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "asking\n"
        process.send_signal(signal.SIGINT)
        told, _ = process.communicate(timeout=300)  # it hung for 3600
    assert (process.returncode, told) in ((0, "stopped\n"), (0, ""))
