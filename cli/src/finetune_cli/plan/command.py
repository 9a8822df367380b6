"""`finetune plan`: check if a job fits, where and why, before it is applied."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any, TextIO

import click
from finetune_operator.api.pod_merge import NO_DEFAULTS, NodeRules, node_rules
from finetune_operator.api.pods import parse_pod_defaults
from finetune_operator.api.spec import FineTuneJobSpec, Resources
from finetune_operator.api.stages import Stage
from finetune_operator.sizing.cost.prices import CostSettings, parse_cost
from finetune_operator.sizing.decision import decide_training
from finetune_operator.sizing.gpu_number import decide_number, possible_numbers
from finetune_operator.sizing.gpus.gpu import Offer
from finetune_operator.sizing.gpus.offers import offers, other_offers
from finetune_operator.sizing.learning_rate import choose_learning_rate
from finetune_operator.sizing.memory.calibration import NO_CALIBRATION, parse_calibration
from finetune_operator.sizing.memory.shape import (
    FamilyUnknownError,
    ModelRefusedError,
    ShapeUnknownError,
    model_shape,
    width_of,
)
from finetune_operator.sizing.memory.stack import DEFAULT_STACK, StackProfile, parse_stack
from finetune_operator.sizing.request import SizingRequest

from finetune_cli.cluster.kubectl import Kubectl
from finetune_cli.errors import UsageError
from finetune_cli.exit_codes import ExitCode
from finetune_cli.kubectl import kubectl_get
from finetune_cli.options import Command
from finetune_cli.plan import inputs
from finetune_cli.plan.arguments import DESCRIPTION, EXAMPLES, plan_options
from finetune_cli.plan.document import document, unknown_model
from finetune_cli.plan.table import style_of, table
from finetune_cli.plan.trace import UNTRACED, trace_model
from finetune_cli.run.local import LocalFolders


@click.command("plan", cls=Command, help=DESCRIPTION, examples=EXAMPLES)
@plan_options
def command(**options: Any) -> int:
    """Print the plan of a job."""
    return plan(SimpleNamespace(**options), sys.stdout)


def plan(options: SimpleNamespace, output: TextIO) -> int:
    """Print the plan of a job and return the exit code.

    Raises UsageError or InvalidSpecError if the request is wrong.
    """
    result = _plan_document(options)
    if options.json:
        print(json.dumps(result, indent=2), file=output)
    else:
        print(table(result, style_of(output)), end="", file=output)
    return ExitCode.SUCCESS if result["fits"] else ExitCode.DOES_NOT_FIT


def _plan_document(options: SimpleNamespace) -> dict[str, Any]:
    file = _file(options)
    spec = inputs.read_spec(file, options.name, options.settings)
    stack = DEFAULT_STACK
    if options.stack is not None:
        stack = inputs.read_mapping(options.stack, "trainer.stackProfile", parse_stack)
    calibration = NO_CALIBRATION
    if options.calibration is not None:
        calibration = inputs.read_mapping(options.calibration, "calibration", parse_calibration)
    folders = LocalFolders(options.volumes.resolve(), dict(options.volume), options.volumes.resolve())
    given = (options.model, spec, folders)
    config = inputs.read_config(*given, from_file=file is not None)
    defaults = NO_DEFAULTS
    if options.pod_defaults is not None:
        defaults = inputs.read_mapping(options.pod_defaults, "trainer.podDefaults", parse_pod_defaults)
    gpus = _gpus(options, spec, stack, node_rules(defaults, spec, Stage.TRAIN))
    refused = inputs.refused_files(inputs.model_source(*given, from_file=file is not None))
    if refused is not None:
        return unknown_model(refused, stack, calibration, refused=True)
    length, reason = _length(options.longest_row, spec)
    shape = None
    try:
        shape = model_shape(config)
    except FamilyUnknownError as error:
        if not options.trace:
            return unknown_model(f"{error}; {UNTRACED}", stack, calibration)
    except ShapeUnknownError as error:
        return unknown_model(str(error), stack, calibration, refused=isinstance(error, ModelRefusedError))
    trace = trace_model(spec, config, length) if options.trace else None
    request = SizingRequest(
        gpus.spec,
        shape,
        length,
        stack,
        calibration,
        device=options.device,
        length_reason=reason,
        rules=gpus.rules,
        trace=trace,
    )
    rows = _rows(options.rows)
    rate = choose_learning_rate(spec.training, shape or width_of(config), rows)
    cost = CostSettings()
    if options.cost is not None:
        cost = inputs.read_mapping(options.cost, "cost", parse_cost)
    data = inputs.described_rows(spec, rows, options.tokens, length)
    request, decision = decide_number(
        request,
        possible_numbers(request, gpus.offers),
        gpus.offers,
        partial(decide_training, others=lambda: gpus.others),
        data,
        cost,
    )
    return document(request, decision, rate, data, cost, family=str(config.get("model_type")))


@dataclass(frozen=True)
class _Gpus:
    """The offered GPUs, those of other resources, and the spec with the constraints and the node rules that apply."""

    spec: FineTuneJobSpec
    offers: tuple[Offer, ...]
    rules: NodeRules
    others: tuple[Offer, ...] = ()


def _file(options: SimpleNamespace) -> Any:
    if options.file is not None and options.filename is not None:
        raise UsageError(f"the job must come from one file, found {options.file} and {options.filename}")
    return options.file if options.file is not None else options.filename


def _length(longest: int | None, spec: FineTuneJobSpec) -> tuple[int, str]:
    """The tokens of the longest training row, and the source of this number."""
    maximum = spec.training.maximum_length
    if longest is None:
        return maximum, "training.maximumLength: no row is longer; set the true length with --longest-row"
    if longest < 1:
        raise UsageError(f"--longest-row must be a number of tokens above 0, found {longest}")
    if longest > maximum:
        return maximum, f"training.maximumLength: the row of {longest} tokens is longer"
    return longest, "--longest-row"


def _rows(rows: int | None) -> int | None:
    """The number of training rows, if it is given."""
    if rows is not None and rows < 1:
        raise UsageError(f"--rows must be a number of training rows above 0, found {rows}")
    return rows


def _gpus(options: SimpleNamespace, spec: FineTuneJobSpec, stack: StackProfile, rules: NodeRules) -> _Gpus:
    """The offers that the options name, else the offers of the cluster."""
    resource = spec.resources.gpu_resource_name
    named = bool(options.gpu) or options.gpu_memory is not None
    listed = options.nodes is not None or options.profiles is not None
    cluster = (options.context, options.kubeconfig) != (None, None)
    if named and (listed or cluster):
        raise UsageError(
            "--nodes, --profiles, --context and --kubeconfig must be absent, because --gpu and --gpu-memory name the GPUs already"
        )
    if named:
        # A named GPU has no labels and no taints to which a node selector or a toleration could apply.
        asked = spec.resources
        anywhere = Resources(
            gpu_resource_name=resource,
            right_size=asked.right_size,
            gpus=asked.gpus,
            gpus_per_node=asked.gpus_per_node,
            maximum_gpus=asked.maximum_gpus,
        )
        return _Gpus(
            spec.model_copy(update={"resources": anywhere}),
            inputs.named_offers(options.gpu, options.gpu_memory, resource, stack, spec.resources),
            NodeRules(),
        )
    if options.nodes is not None and cluster:
        raise UsageError(
            "the nodes must come from a file or from a cluster, found --nodes and --context or --kubeconfig"
        )
    nodes = [] if options.nodes is None else inputs.read_nodes(options.nodes)
    if cluster or not listed:
        node_list = kubectl_get(
            ["nodes"],
            Kubectl(context=options.context, kubeconfig=options.kubeconfig),
            "name the GPUs with --gpu, --nodes or --profiles instead",
        )
        nodes = inputs.nodes_of(node_list, "kubectl get nodes")
    profiles = () if options.profiles is None else inputs.read_profiles(options.profiles)
    sliced = options.allow_time_slicing
    return _Gpus(
        spec,
        offers(nodes, profiles, resource, allow_time_slicing=sliced),
        rules,
        other_offers(nodes, profiles, resource, allow_time_slicing=sliced),
    )
