"""One FedAvg workload, run by this project and by three other simulators; ``peers.py`` compares them.

``python benchmarks/performance/contenders.py NAME WORKLOAD WORKERS FILE`` runs one contender and writes a :class:`Run`.
Everything that a user of a simulator writes is the same for all (``workload.py``): the model and its initial
parameters, who holds which images, the batches (:func:`drawn`, which is quicker than a ``DataLoader``) and, but for
this project's engine and pfl, which bring their own, the loop over them (:func:`train_locally`). Peers are imported
where they run.
"""

from __future__ import annotations

import json
import platform
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from workload import (
    CLIENTS,
    PHASE,
    SEED,
    Run,
    Workload,
    client_data,
    drawn,
    new_model,
    train_locally,
    working_model,
)

from quickdrop_bench.federation.ranks import is_first

# Contenders: from a workload and a number of parallel workers to a run.


def quickdrop(work: Workload, workers: int) -> Run:
    """This project's engine: clients in turn, in one process or in each of several."""
    from lightning.fabric import Fabric

    from quickdrop_bench.core.allocator import keep_freed_memory
    from quickdrop_bench.federation.federation import Federation
    from quickdrop_bench.federation.phase import Phase
    from quickdrop_bench.federation.ranks import ClientParallel

    keep_freed_memory()
    strategy = ClientParallel() if workers > 1 else "auto"
    fabric = Fabric(accelerator="cpu", devices=workers, strategy=strategy, precision="32-true")
    fabric.launch()
    federation, parts = Federation(fabric, new_model(work)), client_data(work)
    phase = Phase(PHASE, work.rounds, work.steps, work.batch, work.lr)
    run = Run(time.monotonic())
    run.state = federation.run(federation.read(), parts, phase, SEED, on_round=run.round_ended).state
    return run


def flower(work: Workload, workers: int) -> Run:
    """Flower's simulation runtime: ``workers`` Ray actors that share the cores."""
    from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp import ServerApp
    from flwr.serverapp.strategy import FedAvg
    from flwr.simulation import run_simulation

    client_app, server_app, run = ClientApp(), ServerApp(), Run()

    @client_app.train()  # type: ignore[untyped-decorator,unused-ignore]
    def train(message: Any, context: Any) -> Any:
        client = int(context.node_config["partition-id"])
        model, data = working_model(work), client_data(work)[client]
        began = time.monotonic()
        model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        train_locally(model, data, work, int(message.content["config"]["server-round"]) - 1, client)
        metrics = MetricRecord({"num-examples": len(data), "began": began})
        content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})
        return Message(content=content, reply_to=message)

    @server_app.main()  # type: ignore[untyped-decorator,unused-ignore]
    def main(grid: Any, context: Any) -> None:
        def earliest(replies: list[Any], weighted_by: str) -> Any:
            return MetricRecord({"began": min(reply["metrics"]["began"] for reply in replies)})

        def evaluate(server_round: int, arrays: Any) -> None:
            if server_round:  # it is called before the first round too
                run.round_ended()

        result = FedAvg(fraction_evaluate=0.0, train_metrics_aggr_fn=earliest).start(
            grid=grid,
            initial_arrays=ArrayRecord(new_model(work).state_dict()),
            num_rounds=work.rounds,
            evaluate_fn=evaluate,
        )
        # The server does not wait for the actors to start, so that the clock of the first round is the clients'.
        run.began = result.train_metrics_clientapp[1]["began"]
        run.state = result.arrays.to_torch_state_dict()

    resources = {"num_cpus": torch.get_num_threads(), "num_gpus": 0.0}
    cores = {"num_cpus": torch.get_num_threads() * workers}
    run_simulation(server_app, client_app, CLIENTS, backend_config={"client_resources": resources, "init_args": cores})
    return run


def pfl(work: Workload, workers: int) -> Run:
    """The simulated backend of pfl; ``workers`` processes that its environment variables bring together."""
    import numpy as np
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.aggregate.weighting import WeightByDatapoints
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.callback.base import TrainingProcessCallback
    from pfl.data.dataset import Dataset
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.data.sampling import get_user_sampler
    from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
    from pfl.metrics import Metrics, Weighted
    from pfl.model.pytorch import PyTorchModel

    run = Run()

    class Client(Dataset):  # type: ignore[misc,unused-ignore]
        def iter(self, batch_size: int | None) -> Iterator[tuple[Tensor, Tensor]]:  # its own batches are not shuffled
            return drawn(parts[self.user_id], work, len(run.ends), self.user_id)

    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = new_model(work)

        def loss(self, images: Tensor, labels: Tensor) -> Tensor:
            return F.cross_entropy(self.model(images), labels)

        def metrics(self, images: Tensor, labels: Tensor) -> dict[str, Any]:
            return {"none": Weighted(0, 1)}  # it insists on evaluating in the first round; this costs nothing

    class Stopwatch(TrainingProcessCallback):  # type: ignore[misc,unused-ignore]
        def after_central_iteration(self, aggregate_metrics: Any, model: Any, *, central_iteration: int) -> Any:
            run.round_ended()
            return False, Metrics()

    np.random.seed(SEED)  # the processes' order of clients is drawn from it
    parts, module = client_data(work), Classifier()
    model = PyTorchModel(module, torch.optim.SGD, torch.optim.SGD(module.parameters(), 1.0))
    clients = {i: Client((part.rows,), user_id=i) for i, part in parts.items()}
    federation = FederatedDataset(clients.__getitem__, get_user_sampler("minimize_reuse", list(clients)))
    backend = SimulatedBackend(federation, federation, postprocessors=[WeightByDatapoints()])
    parameters = NNAlgorithmParams(
        central_num_iterations=work.rounds,
        evaluation_frequency=work.rounds,
        train_cohort_size=CLIENTS,
        val_cohort_size=0,
    )
    training = NNTrainHyperParams(
        local_batch_size=work.batch, local_num_epochs=None, local_num_steps=work.steps, local_learning_rate=work.lr
    )
    evaluation = NNEvalHyperParams(local_batch_size=work.batch)
    run.began = time.monotonic()
    FederatedAveraging().run(
        parameters, backend, model, training, evaluation, [Stopwatch()], send_metrics_to_platform=False
    )
    run.state = module.model.state_dict()
    return run


def process_pool_client(
    config: tuple[Workload, int, int], payload: Any, device: str, stop_event: Any, *, shm_buffer: Any = None
) -> Any:
    """A client of BlazeFL in a process of its pool: the parameters go into shared memory, a handle comes back."""
    from blazefl.core import SHMHandle

    work, k, client = config
    package = blazefl_client(work, k, client, payload)
    shm_buffer.model_parameters.copy_(package.model_parameters)
    package.model_parameters = SHMHandle()
    return package


def blazefl_client(work: Workload, k: int, client: int, payload: Any) -> Any:
    """A client of BlazeFL."""
    from blazefl.contrib.fedavg import FedAvgUplinkPackage
    from blazefl.core import deserialize_model, serialize_model

    model, data = working_model(work), client_data(work)[client]
    deserialize_model(model, payload.model_parameters)
    train_locally(model, data, work, k, client)
    return FedAvgUplinkPackage(client, serialize_model(model), len(data))


def blazefl_trainer(mode: str, work: Workload, workers: int, now: Callable[[], int]) -> Any:
    """The clients' side of BlazeFL in one of its modes; ``now`` tells the round."""
    import multiprocessing

    from blazefl.contrib.fedavg import FedAvgUplinkPackage
    from blazefl.core import (
        BaseClientTrainer,
        IPCMode,
        ProcessPoolClientTrainer,
        ThreadPoolClientTrainer,
        serialize_model,
    )

    class Cache:
        num_parallels, device = workers, "cpu"

        def __init__(self) -> None:
            self.cache: list[Any] = []

        def uplink_package(self) -> list[Any]:
            packages, self.cache = self.cache, []
            return packages

    class Serial(Cache, BaseClientTrainer):  # type: ignore[misc,unused-ignore]
        def local_process(self, payload: Any, cid_list: list[int]) -> None:
            self.cache += [blazefl_client(work, now(), client, payload) for client in cid_list]

    class Threads(Cache, ThreadPoolClientTrainer):  # type: ignore[misc,unused-ignore]
        stop_event = threading.Event()

        def worker(self, cid: int, device: str, payload: Any, stop_event: Any) -> Any:
            return blazefl_client(work, now(), cid, payload)

    class Processes(Cache, ProcessPoolClientTrainer):  # type: ignore[misc,unused-ignore]
        ipc_mode = IPCMode.SHARED_MEMORY
        worker = staticmethod(process_pool_client)

        def __init__(self) -> None:
            super().__init__()
            self.manager = multiprocessing.Manager()
            self.stop_event = self.manager.Event()

        def get_client_config(self, cid: int) -> tuple[Workload, int, int]:
            return work, now(), cid

        def prepare_uplink_package_buffer(self) -> Any:
            return FedAvgUplinkPackage(-1, serialize_model(new_model(work)), 0)

    return {"serial": Serial, "threads": Threads, "processes": Processes}[mode]()


def blazefl(work: Workload, workers: int, mode: str) -> Run:
    """BlazeFL's FedAvg server with clients in one of its modes."""
    from blazefl.contrib.fedavg import FedAvgBaseServerHandler

    class Selector:
        def select_model(self, name: str) -> nn.Module:
            return new_model(work)

    client_data(work)
    server = FedAvgBaseServerHandler(
        model_selector=Selector(),
        model_name="ConvNet",
        dataset=None,
        global_round=work.rounds,
        num_clients=CLIENTS,
        sample_ratio=1.0,
        device="cpu",
        batch_size=work.batch,
        seed=SEED,
    )
    trainer = blazefl_trainer(mode, work, workers, lambda: server.round)
    run = Run(time.monotonic())
    while not server.if_stop():
        trainer.local_process(server.downlink_package(), server.sample_clients())
        for package in trainer.uplink_package():
            server.load(package)
        run.round_ended()
    run.state = server.model.state_dict()
    return run


@dataclass(frozen=True)
class Contender:
    """A simulator in one of its settings.

    Attributes:
        run: from a workload and the number of workers to a run.
        parallel: whether it has a worker for each core, with one thread each; else one with all threads.
        settings: in words.
        packages: whose versions are stated.
        launches: whether the workers are processes that are launched with pfl's environment variables.
    """

    run: Callable[[Workload, int], Run]
    parallel: bool
    settings: str
    packages: tuple[str, ...]
    launches: bool = False

    def versions(self) -> str:
        """Of the simulator, torch and Python."""
        stated = [f"{name} {version(name)}" for name in (*self.packages, "torch", "numpy")]
        return ", ".join([*stated, f"Python {platform.python_version()}"])


OURS = "quickdrop-bench"

CONTENDERS = {
    OURS: Contender(quickdrop, False, "one process, clients in turn, all threads", ("quickdrop-bench", "lightning")),
    f"{OURS}, a process a core": Contender(
        quickdrop, True, "`--devices`: Fabric starts the processes", ("quickdrop-bench", "lightning")
    ),
    "Flower, one actor": Contender(
        flower, False, "`client_resources` of all cores (its default on two), no federated evaluation", ("flwr", "ray")
    ),
    "Flower, an actor a core": Contender(
        flower, True, "`client_resources` of one core, no federated evaluation", ("flwr", "ray")
    ),
    "pfl, one process": Contender(pfl, False, "`SimulatedBackend`, `WeightByDatapoints`, no evaluation", ("pfl",)),
    "pfl, a process a core": Contender(pfl, True, "the same, with `PFL_WORKER_ADDRESSES`", ("pfl",), launches=True),
    "BlazeFL, single-threaded": Contender(
        lambda work, workers: blazefl(work, workers, "serial"), False, "`BaseClientTrainer`, all threads", ("blazefl",)
    ),
    "BlazeFL, a thread a core": Contender(
        lambda work, workers: blazefl(work, workers, "threads"),
        True,
        "`ThreadPoolClientTrainer`, on a Python with the GIL",
        ("blazefl",),
    ),
    "BlazeFL, a process a core": Contender(
        lambda work, workers: blazefl(work, workers, "processes"),
        True,
        "`ProcessPoolClientTrainer`, `SHARED_MEMORY`, forked",
        ("blazefl",),
    ),
}


def main(name: str, workload: str, workers: str, file: str) -> None:
    """Run one contender; of several processes, only the one that ``file`` is for writes it."""
    contender = CONTENDERS[name]
    run = contender.run(Workload(**json.loads(workload)), int(workers))
    if file and is_first():
        saved = {"began": run.began, "ends": run.ends, "state": run.state, "versions": contender.versions()}
        torch.save(saved, file)


if __name__ == "__main__":
    # Other processes find functions by their module's name, which those of a script have not.
    import contenders

    contenders.main(*sys.argv[1:])
