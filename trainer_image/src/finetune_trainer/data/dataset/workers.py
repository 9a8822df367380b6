"""Runs processes that prove rows in parallel, each with a copy of the masker.

They are started as new processes instead of forked: this process has threads (the tokenizer's, the network's), and a
forked child could wait forever for a lock that one of them held. A worker that loses its parent ends at once.
"""

from __future__ import annotations

import os
import pickle
import queue
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections import deque
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, Self

from finetune_trainer.data.conversations.conversation import Conversation
from finetune_trainer.data.rows.rejection import RowReason, RowRejected
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.host_memory import is_host_out_of_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from finetune_trainer.data.masking.example import Example
    from finetune_trainer.data.masking.masking import Masker

# A worker holds one batch in work and one waiting, so that it never waits for this process.
_AHEAD = 2
_OUT_OF_MEMORY = 70
"""Exit code of a worker that gets no more memory."""
_WORKER = f"""
import os
try:
    from {__name__} import serve
    serve({{descriptor}})
except Exception as error:
    from finetune_trainer.host_memory import is_host_out_of_memory
    if is_host_out_of_memory(error):
        os._exit({_OUT_OF_MEMORY})
    raise
"""

Proof = tuple[Conversation | None, "list[Example] | RowRejected"]


def prove_values(
    values: list[dict[str, Any]], masker: Masker, parse: Callable[..., Conversation]
) -> list[Proof]:
    """Prove a batch of rows' objects."""
    parsed: list[Conversation | RowRejected] = []
    for value in values:
        try:
            parsed.append(parse(value))
        except RowRejected as rejection:
            parsed.append(rejection)
    outcomes = iter(masker.examples([item for item in parsed if isinstance(item, Conversation)]))
    return [
        (None, item) if isinstance(item, RowRejected) else (item, _located(next(outcomes), item))
        for item in parsed
    ]


def _located(outcome: list[Example] | RowRejected, conversation: Conversation) -> list[Example] | RowRejected:
    """Return the outcome; a rejection names its place as the dataset does."""
    if not isinstance(outcome, RowRejected):
        return outcome
    return RowRejected(outcome.reason, conversation.place_in_row(outcome.field), outcome.detail)


class Workers:
    """A fixed number of processes; the context manager always ends them."""

    def __init__(self, masker: Masker, parse: Callable[..., Conversation], count: int) -> None:
        """Start the processes and send each the masker."""
        self._workers: list[tuple[subprocess.Popen[bytes], Connection]] = []
        work = pickle.dumps((masker, parse), protocol=pickle.HIGHEST_PROTOCOL)
        for _ in range(count):
            ours, theirs = socket.socketpair()
            with theirs:
                process = _start(theirs.fileno())
            self._workers.append((process, Connection(ours.detach())))
        for process, connection in self._workers:
            _send(process, connection, work)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for process, connection in self._workers:
            connection.close()
            process.kill()
        for process, _ in self._workers:
            process.wait()

    def prove(self, batches: Iterator[list[dict[str, Any]]]) -> Iterator[list[Proof]]:
        """Yield the proofs of each batch, in order.

        Raises StageError if a worker dies, and whatever an unexpected failure in one raised.
        """
        waiting: deque[int] = deque()
        turn = 0
        for batch in batches:
            if len(waiting) == _AHEAD * len(self._workers):
                yield self._receive(waiting.popleft())
            _send(*self._workers[turn], pickle.dumps(batch, protocol=pickle.HIGHEST_PROTOCOL))
            waiting.append(turn)
            turn = (turn + 1) % len(self._workers)
        while waiting:
            yield self._receive(waiting.popleft())

    def _receive(self, turn: int) -> list[Proof]:
        process, connection = self._workers[turn]
        try:
            answer = pickle.loads(connection.recv_bytes())  # noqa: S301 -- written by our own process
        except (EOFError, OSError) as error:
            raise _broken(process, error) from error
        if isinstance(answer, BaseException):
            raise answer
        proofs: list[Proof] = [
            (
                conversation,
                RowRejected(RowReason(outcome[0]), *outcome[1:]) if isinstance(outcome, tuple) else outcome,
            )
            for conversation, outcome in answer
        ]
        return proofs


def _start(descriptor: int) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        # The workers already use all cores, so a tokenizer's own threads would only slow them down.
        "TOKENIZERS_PARALLELISM": "false",
        "RAYON_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    return subprocess.Popen(
        [sys.executable, "-c", _WORKER.format(descriptor=descriptor)],
        env=environment,
        pass_fds=[descriptor],
        stdin=subprocess.DEVNULL,
        # Rows may be printed on this process's standard output.
        stdout=subprocess.DEVNULL,
    )


def _send(process: subprocess.Popen[bytes], connection: Connection, message: bytes) -> None:
    try:
        connection.send_bytes(message)
    except OSError as error:
        raise _broken(process, error) from error


def _broken(process: subprocess.Popen[bytes], error: Exception) -> StageError:
    """Return the failure of a connection: this process has no more memory, or the worker has ended."""
    # A worker that lives would be waited for without end.
    if is_host_out_of_memory(error) or process.wait() == _OUT_OF_MEMORY:
        return StageError(
            Reason.HOST_OUT_OF_MEMORY,
            "the processes that prove rows must get the host memory that they ask for, found none left; raise "
            "resources.prepare.memory or free memory of the node",
        )
    return _died(process)


def _died(process: subprocess.Popen[bytes]) -> StageError:
    code = process.wait()
    how = signal.Signals(-code).name if code < 0 else f"with exit code {code}"
    return StageError(
        Reason.INTERNAL_ERROR,
        f"the processes that prove rows must live until the last row, found one ended by {how}; "
        "SIGKILL usually means that memory ran out: raise the memory of resources.prepare",
    )


def serve(descriptor: int) -> None:
    """Run a worker: prove batches until the connection closes."""
    # A terminal sends SIGINT to the whole group; the parent decides what to do.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection = Connection(descriptor)
    try:
        masker, parse = pickle.loads(connection.recv_bytes())  # noqa: S301 -- written by our own parent
        # A thread reads ahead, so that the parent can send before it has received.
        batches: queue.Queue[bytes] = queue.Queue()
        threading.Thread(target=_read, args=(connection, batches), daemon=True).start()
        while True:
            values = pickle.loads(batches.get())  # noqa: S301 -- written by our own parent
            connection.send_bytes(_answer(values, masker, parse))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        os._exit(0)


def _read(connection: Connection, batches: queue.Queue[bytes]) -> None:
    try:
        while True:
            batches.put(connection.recv_bytes())
    except (EOFError, OSError):
        # The parent has ended, so nobody needs the remaining results.
        os._exit(0)
    except MemoryError:
        # Without this thread, the process would wait for ever.
        os._exit(_OUT_OF_MEMORY)


def _answer(values: list[dict[str, Any]], masker: Masker, parse: Callable[..., Conversation]) -> bytes:
    try:
        answer: Any = [
            (
                conversation,
                (outcome.reason.value, outcome.field, outcome.detail)
                if isinstance(outcome, RowRejected)
                else outcome,
            )
            for conversation, outcome in prove_values(values, masker, parse)
        ]
    except Exception as error:  # noqa: BLE001 -- it is raised again in the parent
        answer = _portable(error)
    return pickle.dumps(answer, protocol=pickle.HIGHEST_PROTOCOL)


def _portable(error: Exception) -> Exception:
    """Return the error and its traceback in a form that the parent can read."""
    error.add_note("in a process that proves rows:\n" + "".join(traceback.format_exception(error)))
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 -- written on the same line
    except Exception:  # noqa: BLE001 -- pickling an unknown error may fail in any way
        return RuntimeError("\n".join([f"{type(error).__name__}: {error}", *error.__notes__]))
    return error
