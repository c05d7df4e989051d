"""Graph networks of torch_geometric, whose batches and linear layers are its own."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from tests.zoo.project import NUM_CLASSES, Classifier, Project


class GraphClassifier(Classifier):
    """Says of which kind a graph, or each of its nodes, is."""

    def forward(self, data: Any) -> Tensor:
        return self.net(data.x, data.edge_index, batch=data.batch)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = nn.functional.cross_entropy(self(batch), batch.y)
        self.log("train_loss", loss, batch_size=batch.num_graphs)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        logits = self(batch)
        self.accuracy(logits, batch.y)
        self.log("val_accuracy", self.accuracy, batch_size=batch.num_graphs)
        loss = nn.functional.cross_entropy(logits, batch.y)
        self.log("val_loss", loss, batch_size=batch.num_graphs)


def graph(num_labels: int) -> Any:
    from torch_geometric.data import Data
    from torch_geometric.utils import erdos_renyi_graph

    edges = erdos_renyi_graph(6, 0.5)
    return Data(torch.randn(6, 5), edges, y=torch.randint(NUM_CLASSES, (num_labels,)))


def network_of_graphs() -> nn.Module:
    from torch_geometric.nn import GCN, MLP, BatchNorm, global_mean_pool

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = GCN(5, 16, num_layers=2, norm=BatchNorm(16), dropout=0.1)
            self.head = MLP([16, 8, NUM_CLASSES], norm=None)

        def forward(self, x: Tensor, edges: Tensor, batch: Tensor) -> Tensor:
            return self.head(global_mean_pool(self.body(x, edges), batch))

    return Net()


def classified_graphs() -> tuple[LightningModule, dict[str, Any]]:
    """By Lightning's data module of torch_geometric."""
    from torch_geometric.data.lightning import LightningDataset

    graphs = [graph(1) for _ in range(8)]
    data = LightningDataset(graphs, graphs, batch_size=4, num_workers=0, pin_memory=False)
    return GraphClassifier(network_of_graphs()), {"datamodule": data}


def classified_nodes() -> tuple[LightningModule, dict[str, Any]]:
    """One graph is one batch, and all the data."""
    from torch_geometric.loader import DataLoader
    from torch_geometric.nn import GAT

    net = GAT(5, 8, num_layers=2, out_channels=NUM_CLASSES, heads=2, dropout=0.1)
    data = [graph(6), graph(6)]
    return GraphClassifier(net), {
        "train_dataloaders": DataLoader(data, shuffle=True),
        "val_dataloaders": DataLoader(data),
    }


def forward(module: Any, batch: Any) -> Tensor:
    return module(batch)


IMPORT = "`torch.jit.script` is deprecated"  # torch_geometric 2.8 does so when imported
# Messages are passed between them, so that a layer and what follows are not next to each other.
UNSEEN = "Which nonlinearity follows 'net.*convs.*' is not known"
PROJECTS = [
    Project(
        "gcn",
        classified_graphs,
        output=forward,
        warnings=(IMPORT, UNSEEN),
    ),
    Project(
        "gat",
        classified_nodes,
        output=forward,
        dense=("*.att_src", "*.att_dst"),
        warnings=(IMPORT, UNSEEN),
    ),
]
