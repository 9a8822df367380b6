"""Trains on several processes of one or more nodes, which torchrun's elastic launcher starts, watches and ends."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import uuid
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from finetune_trainer.contract.node import node_index, pod_address
from finetune_trainer.contract.train_result import TrainResult
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.stages.train.checkpoints import saved_steps
from finetune_trainer.stages.train.ranks.channel import Ends, Listening
from finetune_trainer.stages.train.ranks.group import TIMEOUT_SECONDS
from finetune_trainer.stages.train.ranks.meeting import Meeting, meet
from finetune_trainer.stages.train.ranks.worker import work
from finetune_trainer.stages.train.rungs import runs_by_rung
from finetune_trainer.stages.train.stop_request import interrupted
from finetune_trainer.workspace.layout import WorkspaceLayout, read_marker

if TYPE_CHECKING:
    from collections.abc import Iterator

    from finetune_trainer.contract.run_spec import RunSpec
    from finetune_trainer.telemetry.reporter import Reporter

_log = logging.getLogger(__name__)

JOIN_SECONDS = 120
"""Time in which the launchers of all nodes must have joined. Their pods run by then."""
SHUTDOWN_SECONDS = 300
"""Time in which ranks must have saved their state after a signal. Kubernetes ends a pod earlier."""


def train_on_ranks(
    run: RunSpec,
    progress: Reporter,
    processes: int,
    timeout_seconds: float = TIMEOUT_SECONDS,
    nodes: int = 1,
) -> TrainResult:
    """Train the run's adapter on several processes of this node; return what one process would return.

    The processes share the rows of each step, so the result is that of one process but for rounding. A run that was stopped
    continues on any number of processes. `timeout_seconds` limits the time for which a rank waits for the others. Each of
    several `nodes` runs this with as many processes, and each returns the result.

    Raises StageError: what `train` raises, with the rank that failed, or InternalError if one was killed. It is Interrupted
    if only ranks of other nodes have failed.
    """
    workspace = WorkspaceLayout(run.workspace.path)
    done = TrainResult.read(read_marker(workspace, "train", run.spec_hash))
    if done is not None:
        return done
    _require_devices(run, processes)
    first = node_index(run) * processes
    ranks = range(first, first + processes)
    for _rung in runs_by_rung(run):
        ends, signal_name = _launch(run, progress, processes, timeout_seconds, nodes)
        found = TrainResult.read(ends.results.get(first))
        if found is not None:
            return found
        if signal_name is not None:
            raise interrupted(signal_name, saved_steps(workspace.checkpoints))
        failure = failure_of(ends, processes * nodes, ranks)
        retries = any(each.retries for each in ends.failures.values())
        if nodes > 1:
            raise _of_one_node(failure, ends, ranks, retries=retries)
        if not retries:
            break
        _log.warning("%s; continuing with the next plan of the ladder", failure.message)
    raise failure


def _of_one_node(failure: StageError, ends: Ends, ranks: range, *, retries: bool) -> StageError:
    """Return what the pod of one of several nodes reports. Only all pods together can begin again."""
    if retries:
        return StageError(
            Reason.INTERRUPTED,
            f"{failure.message}; run it again to continue with the next plan of the ladder",
            failure.rank,
        )
    told = ends.failures.keys() | ends.results.keys()
    if told >= set(ranks) and all(each.lost for each in ends.failures.values()):
        return StageError(
            Reason.INTERRUPTED,
            f"a rank of another node was lost, and its pod says why ({failure.message}); run it again to continue from the "
            "last checkpoint",
        )
    return failure


def failure_of(ends: Ends, processes: int, own: range | None = None) -> StageError:
    """Return the failure of a run from the ends of this node's ranks, with the rank that was the first to fail.

    A rank that told nothing was killed, or it hung until it was killed. The others fail because of it. Ranks that are
    interrupted follow another failure, or they all are. `processes` is the number of all ranks, and `own` are those of this node,
    None for all.
    """
    ranks = range(processes) if own is None else own
    told = ends.failures
    silent = [rank for rank in ranks if rank not in told and rank not in ends.results]
    if silent:
        return StageError(
            Reason.INTERNAL_ERROR,
            f"every rank must end with a result, found none of {_named(silent, processes)}: its process was killed, or it "
            "hung; run it again to continue from the last checkpoint",
            silent[0],
        )
    causes = {rank: failure for rank, failure in told.items() if not failure.lost} or told
    causes = {
        rank: failure for rank, failure in causes.items() if failure.reason is not Reason.INTERRUPTED
    } or causes
    rank = min(causes)
    first = causes[rank]
    if len({(each.reason, each.message) for each in causes.values()}) == 1 and len(causes) == len(ranks):
        return StageError(first.reason, first.message)
    if first.reason is Reason.INTERRUPTED:
        # The message names the ranks that were asked to stop.
        return StageError(first.reason, first.message)
    # A rank that only lost another one is no cause, and it does not know which one is.
    named = None if first.lost else rank
    return StageError(first.reason, f"{_named([rank], processes)}: {first.message}", named)


def _launch(
    run: RunSpec, progress: Reporter, processes: int, timeout_seconds: float, nodes: int
) -> tuple[Ends, str | None]:
    """Run the ranks of this node until all have ended; return their ends, and the signal that this process received."""
    on_gpu = run.device == "cuda"
    # DDP warns that a search for unused experts takes time if a model has none.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if not on_gpu:
        # One process imports the libraries, and the ranks are forks of it.
        multiprocessing.set_forkserver_preload([work.__module__])
    place, meeting = _place(run, nodes)
    config = LaunchConfig(
        min_nodes=nodes,
        max_nodes=nodes,
        nproc_per_node=processes,
        **place,
        max_restarts=0,
        # CUDA does not survive a fork.
        start_method="spawn" if on_gpu else "forkserver",
        # Each rank sees its own GPU only, so the code of one GPU serves.
        virtual_local_rank=on_gpu,
        shutdown_timeout=SHUTDOWN_SECONDS,
    )
    with Listening(progress) as listening, _kept_handlers():
        try:
            elastic_launch(config, work)(
                run.model_dump_json(by_alias=True, exclude_none=True), listening.address, timeout_seconds
            )
        except SignalException as error:
            return listening.ends, error.sigval.name
        except ChildFailedError as error:
            _log.debug("the ranks have ended: %s", error)
    # The store of the meeting must outlive the ranks of all nodes.
    del meeting
    return listening.ends, None


def _place(run: RunSpec, nodes: int) -> tuple[dict[str, Any], Meeting | None]:
    """Return where the launchers of all nodes meet, as members of a LaunchConfig, and what keeps that place open."""
    if nodes == 1:
        alone = {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "local_addr": "localhost"}
        return {"run_id": uuid.uuid4().hex, **alone}, None
    index, address = node_index(run), pod_address()
    workspace = WorkspaceLayout(run.workspace.path)
    meeting = meet(workspace, attempt=run.attempt, index=index, nodes=nodes, address=address)
    host = f"[{meeting.address}]" if ":" in meeting.address else meeting.address
    place = {
        "run_id": meeting.token,
        "rdzv_backend": "static",
        "rdzv_endpoint": f"{host}:{meeting.port}",
        "rdzv_configs": {"rank": index, "timeout": JOIN_SECONDS},
        "local_addr": address,
    }
    return place, meeting


@contextmanager
def _kept_handlers() -> Iterator[None]:
    """Put the handlers of signals back, which the launcher replaces."""
    before = {
        number: signal.getsignal(number)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)


def _require_devices(run: RunSpec, processes: int) -> None:
    if run.device == "cuda" and torch.cuda.device_count() < processes:
        raise StageError(
            Reason.GPU_NOT_VISIBLE,
            f"{processes} processes must have a GPU each, found {torch.cuda.device_count()}; lower --processes",
        )


def _named(ranks: list[int], processes: int) -> str:
    return f"rank {ranks[0]} of {processes}" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))}"
