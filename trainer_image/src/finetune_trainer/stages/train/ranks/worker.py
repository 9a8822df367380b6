"""The process of one rank: joins the group, trains its part, and tells the launching process how it ended."""

from __future__ import annotations

import logging
import os
import signal
import sys
from functools import partial
from typing import Any

import torch

from finetune_trainer.contract.run_spec import RunSpec
from finetune_trainer.cpu import available_cpus
from finetune_trainer.errors import Reason
from finetune_trainer.runner import reason_of
from finetune_trainer.stages.train.ranks.channel import Address, Channel, Failure, RankLog, RankReporter
from finetune_trainer.stages.train.ranks.group import (
    RankDoesNotFitError,
    is_lost_rank,
    is_on_one_node,
    joined,
)
from finetune_trainer.stages.train.stage import train_rank
from finetune_trainer.telemetry.reporter import NullReporter
from finetune_trainer.termination import Terminated, raise_on_termination


def work(document: str, address: Address, timeout_seconds: float) -> None:
    """Train as the rank that torchrun's environment variables name. `document` is the run spec as JSON.

    Ends the process with exit code 1 after a failure, so that the launching process ends the other ranks.
    """
    # The launching process prints results to standard output, and libraries may print, too.
    os.dup2(2, 1)
    rank, size = int(os.environ["RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    channel = Channel(address, rank)
    try:
        raise_on_termination()
        _log_to(channel, rank)
        failure = _train(RunSpec.model_validate_json(document), channel, rank, size, timeout_seconds)
    except Terminated as signal_name:
        failure = Failure(
            Reason.INTERRUPTED, f"the run was stopped by {signal_name}; run it again to continue"
        )
    if failure is None:
        channel.close()
        # This rank has nothing left to save while it waits for the others.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        return
    channel.send("failure", failure)
    channel.close()
    # Ending the interpreter would wait for threads and for the other ranks.
    sys.stderr.flush()
    os._exit(1)


def _train(run: RunSpec, channel: Channel, rank: int, size: int, timeout_seconds: float) -> Failure | None:
    try:
        # The ranks share the processors, too.
        threads = max(1, available_cpus() // size)
        os.environ["OMP_NUM_THREADS"] = str(threads)
        torch.set_num_threads(threads)
        progress = RankReporter(channel) if rank == 0 else NullReporter()
        shares_result = not is_on_one_node()
        with joined(run.device, timeout_seconds) as ranks:
            result = train_rank(run, progress, ranks)
            document = None if result is None else result.document()
            if shares_result:
                # The pod of each node reports it.
                document = ranks.from_first(partial(_same, document))
        channel.send("result", document)
    except RankDoesNotFitError as error:
        return Failure(Reason.GPU_OUT_OF_MEMORY, f"its GPU is out of memory: {error}", retries=True)
    except Exception as error:  # noqa: BLE001 -- the last handler of the process
        return Failure(*reason_of("train", error, run), lost=is_lost_rank(error))
    return None


def _same(document: dict[str, Any] | None) -> dict[str, Any] | None:
    return document


def _log_to(channel: Channel, rank: int) -> None:
    """Send the log to the launching process. All ranks would say the same, so only the first one tells all."""
    root = logging.getLogger()
    for handler in list(root.handlers):
        root.removeHandler(handler)
    handler = RankLog(channel, rank)
    handler.setFormatter(logging.Formatter("%(message)s"))
    root.addHandler(handler)
    root.setLevel(logging.INFO if rank == 0 else logging.WARNING)
    logging.captureWarnings(True)
    if rank:
        logging.getLogger("py.warnings").setLevel(logging.ERROR)
    # It advises to let it share the steps.
    logging.getLogger("transformers.training_args").addFilter(
        lambda record: "parallel_mode" not in record.getMessage()
    )
