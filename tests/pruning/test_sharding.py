import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from lightning_lth.pruning import scoring
from lightning_lth.pruning.masks import Masks, local_part
from lightning_lth.pruning.scoring import Scores
from lightning_lth.pruning.selection import prune
from lightning_lth.pruning.sharding import Ranks


def whole_weights(kind):
    generator = torch.Generator().manual_seed(0)
    weights = {  # 31 rows make unequal shards, 1 row leaves all ranks but the first without any
        "odd": torch.randn(31, 50, generator=generator),
        "one": torch.randn(1, 40, generator=generator),
        "norm": torch.randn(30, generator=generator),
        "even": torch.randn(64, 20, generator=generator),
    }
    if kind == "ties":  # 5 magnitudes or so
        weights = {name: tensor.round() for name, tensor in weights.items()}
    if kind == "float64":
        weights = {name: tensor.double() for name, tensor in weights.items()}
    return weights


def spread(weights, mesh):
    return {
        name: distribute_tensor(tensor, mesh, [Replicate() if name == "norm" else Shard(0)])
        for name, tensor in weights.items()
    }


def check_all(mesh):
    check_same_as_unsharded(mesh)
    check_random_is_the_same(mesh)
    check_fully_shard(mesh)
    check_refusals(mesh)


def check_same_as_unsharded(mesh):
    for kind in ("normal", "ties", "float64"):
        weights = whole_weights(kind)
        shards = spread(weights, mesh)
        expected, got = Masks.dense(weights), Masks.dense(shards)
        for _ in range(2):
            for scope in ("global", "layer"):
                rules = {"fraction": 0.2, "scope": scope, "fractions": {"even": 0.1}}
                expected = prune(scoring.magnitude(weights), expected, **rules)
                got = prune(scoring.magnitude(shards), got, **rules)
        for name, mask in got.items():
            assert isinstance(mask, DTensor)
            assert mask.placements == shards[name].placements
            assert torch.equal(mask.full_tensor(), expected[name]), (kind, name)
        assert got.num_remaining == expected.num_remaining


def check_random_is_the_same(mesh):
    weights = whole_weights("normal")
    shards = spread(weights, mesh)
    here = scoring.random(3)(weights, weights).materialize()
    there = scoring.random(3)(shards, shards).materialize()
    for name, scores in there.items():
        assert torch.equal(scores.full_tensor(), here[name])


def check_fully_shard(mesh):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(20, 31), torch.nn.Linear(31, 7))
    weights = {name: w.detach().clone() for name, w in model.named_parameters() if w.dim() > 1}
    torch.distributed.fsdp.fully_shard(model, mesh=mesh)
    shards = {name: w for name, w in model.named_parameters() if w.dim() > 1}
    expected = prune(scoring.magnitude(weights), Masks.dense(weights), fraction=0.3)
    got = prune(scoring.magnitude(shards), Masks.dense(shards), fraction=0.3)
    for name, mask in expected.items():
        assert torch.equal(got[name].full_tensor(), mask)


def check_refusals(mesh):
    weights = {"w": torch.arange(12.0).view(4, 3)}
    by_rows = {"w": distribute_tensor(weights["w"], mesh, [Shard(0)])}
    columns = {"w": distribute_tensor(weights["w"], mesh, [Shard(1)])}
    with pytest.raises(ValueError, match=r"'w' must be replicated or sharded by rows"):
        prune(scoring.magnitude(columns), Masks.dense(columns), fraction=0.5)
    with pytest.raises(ValueError, match=r"The mask of 'w' must be distributed like its weights"):
        prune(scoring.magnitude(by_rows), Masks.dense(weights), fraction=0.5)
    bad = weights["w"].clone()
    bad[3, 2] = float("nan")  # on the last rank alone; the others must not wait forever
    bad = {"w": distribute_tensor(bad, mesh, [Shard(0)])}
    with pytest.raises(ValueError, match=r"got NaN in \['w'\]"):
        prune(Scores.of(bad), Masks.dense(bad), fraction=0.5)
    square = init_device_mesh("cpu", (mesh.size(), 1), mesh_dim_names=("rows", "columns"))
    both = {"w": distribute_tensor(weights["w"], square, [Shard(0), Replicate()])}
    with pytest.raises(ValueError, match=r"over a one-dimensional mesh to be pruned"):
        prune(scoring.magnitude(both), Masks.dense(both), fraction=0.5)
    assert local_part(by_rows["w"]).shape == (4 // mesh.size(), 3)


@pytest.mark.distributed
def test_ranks_prune_as_one(two_processes, four_processes):
    for folder, count in ((two_processes, 2), (four_processes, 4)):
        for rank in range(count):
            assert (folder / "sharding" / f"passed_{rank}").exists()


def test_one_process_is_one_rank():
    ranks = Ranks.of([torch.zeros(3)])
    assert (ranks.index, ranks.total(5), ranks.gather([1, 2])) == (0, 5, [[1], [2]])
