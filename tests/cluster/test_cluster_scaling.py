"""The pool of a trace on a cluster, as a run's metrics in the store tell of it: it grows while prompts wait, and gives
its actors back when none is left."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from cluster_env import ClusterEnv, Double
from tiny_study import make_transcoders

PROMPTS = [f"f{n}({'xyz'[n % 3]})" for n in range(300)]
PLACES = 4


@pytest.mark.ray
@pytest.mark.s3
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_300_prompts_are_traced_by_one_to_four_actors_and_back(cluster_env: ClusterEnv, double: Double) -> None:
    cluster_env.change_profile(workers=[{"name": "cpu", "cpus": 2, "memory": "8G", "max": 2}])
    make_transcoders(cluster_env.folder / "inputs")
    run = cluster_env.submit(
        dictionaries=[{"name": "mlp", "from": f"{cluster_env.url}/inputs/transcoders"}],
        trace={"prompts": PROMPTS, "actors": {"min": 1, "max": PLACES}},
    )
    run.succeeds()

    rows = [row for row in run.told_of("trace", 1) if "actors" in row]
    actors = [row["actors"] for row in rows]
    assert actors[0] == 1 and 3 <= max(actors) <= PLACES
    largest = len(actors) - actors[::-1].index(max(actors))
    assert actors[:largest] == sorted(actors[:largest]), "it only grows while prompts wait"
    assert actors[largest:] == list(range(max(actors) - 1, 0, -1)), "each that finds no prompt is given back at once"
    done = [row["done"] for row in rows]
    assert done == sorted(set(done)) and done[-1] == len(PROMPTS)
    assert done[largest - 1] >= len(PROMPTS) - PLACES, "it shrinks at the end, and not before"

    made = run.made("trace")
    index = [json.loads(line) for line in made.read("index.jsonl").splitlines()]
    assert [row["prompt"] for row in index] == PROMPTS and {row["status"] for row in index} == {"ok"}
    assert Counter(made.names())[f"graphs/{index[0]['slug']}.json"] == 1
    assert set(run.graphs()) == {f"graphs/{row['slug']}.json" for row in index}
    assert len(run.graphs()) == len({row["slug"] for row in index}) == len(PROMPTS)
