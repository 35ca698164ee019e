# SPDX-License-Identifier: Apache-2.0
"""Federated learning with Flower on one machine: clients send compressed updates to a server over gRPC.

    pip install flwr
    python examples/flower_updates.py [--clients 4] [--rounds 8] [--share 0.1] [--bits 4]

Every client is a process of its own with a part of the digits, uneven in its classes. It trains, sends
the largest entries of its update as small integers (`rarefy.store.updates`) and keeps the rest for the
next round. The server averages what arrives. `Worker` and `Averager` know nothing of Flower; the classes
that Flower calls are made in `client` and `strategy`.
"""

import argparse
import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from rarefy.store.updates import Sender, UpdateCodec, average, decode_update, dirichlet_parts
from rarefy.zoo.lenet import DigitsNet
from rarefy.zoo.tasks import load_task

ADDRESS = "127.0.0.1:8461"


def network() -> nn.Module:
    """The network that all begin with."""
    torch.manual_seed(0)
    return DigitsNet()


def weights_of(model: nn.Module) -> dict[str, NDArray[Any]]:
    """Parameters by name."""
    return {name: p.detach().numpy().copy() for name, p in model.named_parameters()}


def loaded(weights: dict[str, NDArray[Any]]) -> nn.Module:
    """The network with these parameters."""
    model = network()
    model.load_state_dict({name: torch.from_numpy(np.array(w)) for name, w in weights.items()})
    return model


@dataclass
class Worker:
    """A client: trains on its own data, sends what matters of the difference.

    Attributes:
        images, labels: its data.
        sender: remembers what was not sent yet.
    """

    images: Tensor
    labels: Tensor
    sender: Sender

    def round(self, weights: dict[str, NDArray[Any]]) -> bytes:
        """The bytes of the update after one pass over the data."""
        model = loaded(weights).train()
        optimiser = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
        for start in range(0, len(self.labels), 32):
            optimiser.zero_grad()
            part = slice(start, start + 32)
            F.cross_entropy(model(self.images[part]), self.labels[part]).backward()
            optimiser.step()
        after = weights_of(model)
        return self.sender.send({name: after[name] - w for name, w in weights.items()})


@dataclass
class Averager:
    """The server: moves its weights by the mean of the updates that arrive.

    Attributes:
        weights: as they are now.
        received: bytes of each round.
    """

    weights: dict[str, NDArray[Any]]
    received: list[int] = field(default_factory=list)

    def take(self, messages: Sequence[bytes], counts: Sequence[int]) -> None:
        """One round: the clients' messages and how many examples each stands for."""
        shapes = {name: w.shape for name, w in self.weights.items()}
        updates = [decode_update(message, shapes) for message in messages]
        self.weights = average(self.weights, updates, counts)
        self.received.append(sum(len(message) for message in messages))

    def accuracy(self) -> float:
        """On the test images."""
        model = loaded(self.weights).eval()
        with torch.no_grad():
            hits = [model(x).argmax(1) == y for x, y in load_task("digits").batches("test")]
        return float(torch.cat(hits).float().mean())


def workers(number: int, codec: UpdateCodec) -> list[Worker]:
    """Clients with uneven parts of the digits; those without any are left out."""
    torch.manual_seed(0)
    batches = list(load_task("digits").batches("train"))
    images, labels = torch.cat([b[0] for b in batches]), torch.cat([b[1] for b in batches])
    parts = dirichlet_parts(labels.numpy(), number, 1.0, 0)
    return [Worker(images[p], labels[p], Sender(copy.deepcopy(codec))) for p in parts if p.size]


def client(worker: Worker, names: Sequence[str]) -> Any:
    """A Flower client around a worker; the update travels as one array of bytes."""
    from flwr.client import NumPyClient

    class Client(NumPyClient):
        def fit(self, parameters: list[NDArray[Any]], config: dict[str, Any]) -> Any:
            data = worker.round(dict(zip(names, parameters, strict=True)))
            return [np.frombuffer(data, np.uint8)], len(worker.labels), {}

    return Client().to_client()


def strategy(averager: Averager, clients: int) -> Any:
    """Flower's federated averaging with our way to put updates together."""
    from flwr.common import ndarrays_to_parameters, parameters_to_ndarrays
    from flwr.server.strategy import FedAvg

    class Average(FedAvg):
        def aggregate_fit(self, server_round: int, results: Any, failures: Any) -> Any:
            if failures:
                raise RuntimeError(f"round {server_round}: {failures[0]}")
            found = [parameters_to_ndarrays(result.parameters)[0] for _, result in results]
            averager.take(
                [array.tobytes() for array in found], [r.num_examples for _, r in results]
            )
            sent, accuracy = averager.received[-1], averager.accuracy()
            print(f"round {server_round}: {sent:,} bytes received, accuracy {accuracy:.3f}")
            return ndarrays_to_parameters(list(averager.weights.values())), {}

    return Average(
        fraction_fit=1.0,
        fraction_evaluate=0.0,
        min_fit_clients=clients,
        min_available_clients=clients,
        initial_parameters=ndarrays_to_parameters(list(averager.weights.values())),
    )


def serve_one(place: int, clients: int, codec: UpdateCodec) -> None:
    """A client's process."""
    from flwr.client import start_client

    torch.set_num_threads(1)
    worker = workers(clients, codec)[place]
    start_client(server_address=ADDRESS, client=client(worker, list(weights_of(network()))))


def main() -> None:
    """Runs the server here and every client in a process of its own."""
    from flwr.server import ServerConfig, start_server

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--share", type=float, default=0.1)
    parser.add_argument("--bits", type=int, default=4)
    options = parser.parse_args()
    torch.set_num_threads(1)
    codec = UpdateCodec(options.share, options.bits)
    number = len(workers(options.clients, codec))
    context = get_context("spawn")
    started = [
        context.Process(target=serve_one, args=(place, options.clients, codec), daemon=True)
        for place in range(number)
    ]
    for process in started:
        process.start()
    averager = Averager(weights_of(network()))
    start_server(
        server_address=ADDRESS,
        config=ServerConfig(num_rounds=options.rounds),
        strategy=strategy(averager, number),
    )
    whole = sum(w.nbytes for w in averager.weights.values()) * number * options.rounds
    sent = sum(averager.received)
    print(f"{sent:,} bytes instead of {whole:,} of float32: {whole / sent:.1f} times fewer")


if __name__ == "__main__":
    main()
