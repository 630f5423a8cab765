"""The pool of a trace on a cluster, as a run's metrics in the store tell of it: it grows while prompts wait, and gives
its actors back when none is left."""

from __future__ import annotations

import json
from typing import Any

import pytest
import tiny_study
from cluster_env import ClusterEnv, Run, wait
from refusing_s3 import RefusingS3
from s3 import S3Server

PROMPTS = [f"f{n}({'xyz'[n % 3]})" for n in range(300)]
PLACES = 4
FEW: dict[str, Any] = {"corpus": {"tokens": 640}}
SLOW_S = 0.25
"""Of a write, until there are as many actors as there can be."""


def actors_of(run: Run) -> int:
    """As the run's status in the store tells of its trace."""
    stages = (run.folder.json("status.json") or {}).get("stages", [])
    return next((stage["figures"].get("actors", 0) for stage in stages if stage["stage"] == "trace"), 0)


@pytest.mark.ray
@pytest.mark.s3
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_300_prompts_are_traced_by_one_to_four_actors_and_back(cluster_env: ClusterEnv, s3_env: S3Server) -> None:
    """Actors wait for a slow store until there are four, so that the others can start on a machine of any speed."""
    # The dictionaries are there already: what runs on the cluster is the trace alone.
    tiny_study.run(cluster_env.study(**FEW, trace=None))
    with RefusingS3(s3_env.endpoint) as proxy:
        env = {**cluster_env.read_profile().env, "AWS_ENDPOINT_URL": proxy.endpoint}
        cluster_env.change_profile(workers=[{"name": "cpu", "cpus": 2, "memory": "8G", "max": 2}], env=env)
        proxy.pause_s = SLOW_S
        run = cluster_env.submit(**FEW, trace={"prompts": PROMPTS, "actors": {"min": 1, "max": PLACES}})
        wait(lambda: actors_of(run) == PLACES or run.told().get("jobDeploymentStatus") in ("Complete", "Failed"))
        proxy.pause_s = 0.0
        run.succeeds()

    assert {row["step"] for row in run.told_of("fit", 1)} == {"cached"}
    rows = [row for row in run.told_of("trace", 1) if "actors" in row]
    actors = [row["actors"] for row in rows]
    assert actors[0] == 1 and max(actors) == PLACES
    largest = len(actors) - actors[::-1].index(max(actors))
    assert actors[:largest] == sorted(actors[:largest]), "it only grows while prompts wait"
    assert actors[largest:] == list(range(max(actors) - 1, 0, -1)), "each that finds no prompt is given back at once"
    done = [row["done"] for row in rows]
    assert done == sorted(set(done)) and done[-1] == len(PROMPTS)
    assert done[largest - 1] >= len(PROMPTS) - PLACES, "it shrinks at the end, and not before"

    made = run.made("trace")
    index = [json.loads(line) for line in made.read("index.jsonl").splitlines()]
    assert [row["prompt"] for row in index] == PROMPTS and {row["status"] for row in index} == {"ok"}
    assert set(run.graphs()) == {f"graphs/{row['slug']}.json" for row in index}
    finished = [written.rpartition("/")[2] for written in proxy.taken if "/scratch/rows/" in written]
    assert sorted(finished) == sorted(f"{row['slug']}.json" for row in index), "none is made twice"
