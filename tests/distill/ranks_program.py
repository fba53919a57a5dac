"""What the processes of `test_ranks.py` run: each is one rank of several, and goes through all of its cases.

    python -m tests.distill.ranks_program CASES.json

The file holds, for each number of processes, the cases by name: settings, and either the steps whose gradients are
wanted or none, for a whole run (of a pruning run, what it comes to in float64). The processes are forked after the
imports, which take longer than the cases.
"""

from __future__ import annotations

import functools
import json
import os
import socket
import sys
import traceback
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file
from torch import Tensor

from distill.data.batch import Batch
from distill.pruning import PruneSettings, Pruning
from distill.settings import EvaluationSettings, LossTerm, OptimiserSettings, RunSettings
from distill.training.ranks import Ranks
from distill.training.run import Run
from distill.training.train import train


def gradients(settings: RunSettings, ranks: Ranks, steps: list[int]) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """What a run would do at some steps with the weights that it begins with, in float64: STEP/PARAMETER → gradient;
    after/NAME, of batch norms, what they remember afterwards.

    Masks begin scattered: where they are all open, hardly any gate moves.
    """
    run = in_float64(settings, ranks)
    scatter(run)
    found: dict[str, Tensor] = {}
    told = []
    for step in steps:
        batch = run.loader.batch(step)
        for pruning in prunings(run):
            pruning.begin(step)
        values = run._gradients(doubled(batch), run.weights(step), lambda total: total)
        for pruning in prunings(run):
            pruning.add_gradients(step, lambda penalty: penalty)
        present = len(batch.keys) if batch.targets.present is None else int(batch.targets.present.sum())
        told.append({"keys": batch.keys, "present": present, "values": {n: float(v) for n, v in values.items()}})
        others = [pair for pruning in prunings(run) for pair in pruning.named_parameters("prune")]
        for name, parameter in [*run.student.named_parameters(), *run.loss.named_parameters("loss"), *others]:
            if parameter.grad is not None:
                found[f"{step}/{name}"] = parameter.grad.clone()
                parameter.grad = None
    running = {name: buffer for name, buffer in run.model.named_buffers() if "running_" in name}
    return found | {f"after/{name}": buffer.clone() for name, buffer in running.items()}, told


def in_float64(settings: RunSettings, ranks: Ranks) -> Run:
    """The run with every parameter in float64."""
    torch.set_default_dtype(torch.float64)
    try:
        return Run(settings, ranks)
    finally:
        torch.set_default_dtype(torch.float32)


def prunings(run: Run) -> list[Pruning]:
    """Of a pruning run one, else none."""
    return [hook for hook in run.hooks.values() if isinstance(hook, Pruning)]


def scatter(run: Run) -> None:
    """Masks of all kinds, if the run has any: open, closed and between."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for row in [row for pruning in prunings(run) for row in pruning.masks()]:
            row.copy_(2 * torch.randn(row.shape, generator=generator))


def pruned(settings: RunSettings, ranks: Ranks) -> dict[str, Tensor]:
    """What a pruning run comes to, in float64: `masked/`, `prune/` and, materialised, `dense/` PARAMETER → values."""
    run = in_float64(settings, ranks)
    for step in range(run.steps):
        run.step(doubled(run.loader.batch(step)))
    (pruning,) = prunings(run)
    dense, _ = run.finished()
    parts = {"masked": run.model, "dense": dense, "prune": pruning}
    return {
        f"{part}/{name}": value.detach().clone()
        for part, module in parts.items()
        for name, value in module.named_parameters()
    }


def doubled(batch: Batch) -> Batch:
    """What the teachers said in float64."""
    return replace(batch, targets=batch.targets.with_rows(lambda rows: rows.double()))


def written(settings: RunSettings) -> dict[str, Any]:
    """As JSON can hold it."""
    return asdict(settings) | {"losses": {name: asdict(term) for name, term in settings.terms().items()}}


def read(fields: dict[str, Any]) -> RunSettings:
    """What `written` gave."""
    fields = {name: _tuples(value) for name, value in fields.items()}
    losses = {name: LossTerm(**term) for name, term in fields["losses"].items()}
    prune = fields["prune"] and PruneSettings(**fields["prune"])
    optimiser = OptimiserSettings(**fields["optimiser"])
    evaluation = fields["evaluation"] and EvaluationSettings(**fields["evaluation"])
    return RunSettings(**{**fields, "optimiser": optimiser, "losses": losses, "prune": prune, "evaluation": evaluation})


def _tuples(value: Any) -> Any:
    """JSON has no tuples."""
    if isinstance(value, dict):
        return {name: _tuples(inner) for name, inner in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def work(cases: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    ranks = Ranks.join()
    for name, case in cases.items():
        settings = read(case["settings"])
        try:
            out = Path(settings.out)
            if case["steps"]:
                found, told = gradients(settings, ranks, case["steps"])
                out.mkdir(exist_ok=True)
                save_file(found, out / f"{ranks.rank}.safetensors")
                (out / f"{ranks.rank}.json").write_text(json.dumps(told))
            elif settings.prune:
                out.mkdir(exist_ok=True)
                save_file(pruned(settings, ranks), out / f"{ranks.rank}.safetensors")
            else:
                train(settings)
        except Exception as error:
            raise RuntimeError(f"{name}, process {ranks.rank} of {ranks.size}") from error
    ranks.leave()


def start(size: int, cases: dict[str, Any]) -> list[int]:
    """Fork the processes; returns their exit statuses."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(size):
        child = os.fork()
        if child == 0:
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)}
            status = 1
            try:
                work(cases)
                status = 0
            except BaseException:  # noqa: BLE001 - whatever it is, this process ends here
                traceback.print_exc()
            sys.stderr.flush()
            os._exit(status)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


if __name__ == "__main__":
    # CLIP's vocabulary is read once, and by nobody again who is forked: it takes longer than a case.
    open_clip.get_tokenizer = functools.cache(open_clip.get_tokenizer)
    open_clip.get_tokenizer("", context_length=16)
    statuses = [start(int(size), cases) for size, cases in json.loads(Path(sys.argv[1]).read_text()).items()]
    sys.exit(any(any(each) for each in statuses))
