"""Activations that are kept: the same bits as a fit sees, made once for all studies that read them, and never torn."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_study import artifact, make_inputs, make_study, run
from torch import Tensor

from interp.corpus.tokens import TokenBlocks
from interp.engine import Engine, cached
from interp.engine.cached import CachedActivations
from interp.engine.harvest import Harvester
from interp.engine.job import FitJob
from interp.engine.local import InProcess
from interp.errors import ArtifactCorrupt, HookError, SpecError, StoreError
from interp.plan import make_plan
from interp.spec.study import Study
from interp.stages import activations as stage
from interp.stages import load_stage
from interp.stages.context import StageContext
from interp.stages.fit import plan_of
from interp.store import Store

TOKENS = 4000
HOOKS = ["layers.0.mlp_in", "layers.0.mlp_out", "layers.0.resid_post", "layers.1.mlp_in", "layers.1.mlp_out"]


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(stage, "SHARD_TOKENS", 1000)  # 31 micro-batches of 32: shards of 992 tokens
    monkeypatch.setenv("INTERP_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    make_inputs(folder)
    return folder


def study(inputs: Path, store: Path | str, cache: str = "model", **changes: Any) -> Study:
    """Corpus and activations alone are run: the fit has tests of its own."""
    fit = {"cache": cache, **changes.pop("fit", {})}
    return make_study(inputs, store=str(store), fit=fit, trace=None, **changes)


def run_to_activations(of: Study) -> Any:
    """Run the stages up to the activations; the artifact."""
    store = Store.open(of.store)
    made = make_plan(of, store)
    for planned in made.stages[:2]:
        if not store.has(planned.stage, planned.key):
            _run_one(of, store, planned)
    return artifact(of, "activations")


def _run_one(of: Study, store: Store, planned: Any, engine: Any = None) -> None:
    read = {role: store.get(*place) for role, place in planned.input_artifacts().items()}
    with (
        store.create(planned.stage, planned.key, spec=planned.spec, inputs=planned.inputs) as out,
        InProcess() as engine,
    ):
        load_stage(planned.stage).run(StageContext(of, planned, engine, store), read, out)


def harvested(of: Study) -> dict[str, Tensor]:
    """What a fit without a cache sees, micro-batch by micro-batch."""
    store = Store.open(of.store)
    corpus = artifact(of, "corpus")
    planned = make_plan(of, store).stage("fit")
    assert planned is not None
    plan = plan_of(StageContext(of, planned, InProcess(), store), corpus)
    harvester = Harvester(FitJob(plan, of.model, corpus, store.scratch("fit", planned.key)), "cpu")
    blocks = TokenBlocks.open(corpus, "train")
    micros = [micro for step in range(plan.n_steps) for micro in plan.micro_batches(step)]
    rows = [blocks.rows(micro.start // 16, -(-micro.stop // 16)) for micro in micros]
    each = [harvester.activations(ids, len(micro)) for ids, micro in zip(rows, micros, strict=True)]
    return {hook: torch.cat([one[hook] for one in each]) for hook in plan.hooks}


def test_what_is_kept_is_what_a_fit_sees_bit_for_bit(inputs: Path, tmp_path: Path) -> None:
    of = study(inputs, tmp_path / "store")
    kept, expected = CachedActivations(run_to_activations(of), HOOKS), harvested(of)
    assert kept.tokens == TOKENS and kept.columns["layers.0.mlp_in"].dtype == torch.float32
    assert sorted(expected) == HOOKS
    for start, stop in ((0, TOKENS), (990, 994), (1984, 3968), (3990, TOKENS)):
        found = kept.rows(start, stop)
        assert all(torch.equal(found[hook], expected[hook][start:stop]) for hook in HOOKS)
    names = list(run_to_activations(of).names("layers.0.mlp_in/"))
    assert names == [f"layers.0.mlp_in/{number:05d}.safetensors" for number in range(5)]


@pytest.mark.parametrize(("dtype", "error"), [("bfloat16", 2**-8), ("float16", 2**-10)])
def test_fewer_bits_are_close(inputs: Path, tmp_path: Path, dtype: str, error: float) -> None:
    of = study(inputs, tmp_path / "store", dtype)
    kept = CachedActivations(run_to_activations(of), HOOKS).rows(0, TOKENS)
    for hook, expected in harvested(of).items():
        assert kept[hook].dtype == getattr(torch, dtype)
        assert torch.equal(kept[hook], expected.to(kept[hook].dtype))
        assert ((kept[hook].float() - expected).norm(dim=1) <= error * expected.norm(dim=1)).all()


def test_values_that_a_dtype_does_not_have_are_refused(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Harvester.activations
    scaled = lambda self, *a, **k: {hook: v * 1e6 for hook, v in plain(self, *a, **k).items()}  # noqa: E731
    monkeypatch.setattr(Harvester, "activations", scaled)
    with pytest.raises(StoreError, match="do not fit into float16"):
        run_to_activations(study(inputs, tmp_path / "store", "float16"))


def key(of: Study) -> str:
    planned = make_plan(of, None).stage("activations")
    assert planned is not None
    return planned.key


def test_studies_with_other_dictionaries_at_the_same_hook_points_share_them(inputs: Path, tmp_path: Path) -> None:
    one = study(inputs, tmp_path / "store")
    run_to_activations(one)
    wider = [
        {"name": "r", "kind": "sae", "at": "layers.0.resid_post", "latents": 99, "activation": {"type": "relu"}},
        {"name": "t", "kind": "transcoder", "at": "layers.[01].mlp", "latents": 7, "activation": {"type": "gated"}},
    ]
    two = study(inputs, tmp_path / "store", "float32", dictionaries=wider, fit={"lr": 0.1, "optimizer": "signum"})
    found = make_plan(two, Store.open(two.store)).stage("activations")
    assert found is not None and found.cached and found.key == key(one)
    others = (
        study(inputs, tmp_path, dictionaries=wider[1:]),
        study(inputs, tmp_path, "bfloat16"),
        study(inputs, tmp_path, corpus={"tokens": 3000}),
    )
    assert len({key(one), *map(key, others)}) == 4
    assert make_plan(make_study(inputs), None).stage("activations") is None


def test_the_fit_reads_them_and_its_own_spec_does_not_say_so(inputs: Path) -> None:
    plain, cached = (make_plan(of, None).stage("fit") for of in (make_study(inputs), study(inputs, "/s")))
    assert plain is not None and cached is not None
    assert set(plain.inputs) == {"corpus"} and set(cached.inputs) == {"corpus", "activations"}
    assert plain.spec == cached.spec and "cache" not in cached.spec["fit"] and plain.key != cached.key
    assert cached.input_artifacts()["activations"][0] == "activations"
    assert cached.cost.flops < plain.cost.flops and cached.cost.memory <= plain.cost.memory


def test_an_interrupted_run_makes_only_the_shards_that_are_missing(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of, plain, made = study(inputs, tmp_path / "store"), stage.ShardMaker.__call__, []

    def counted(self: Any, cut: stage.Cut) -> Any:
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(cut.number)
        return plain(self, cut)

    monkeypatch.setattr(stage.ShardMaker, "__call__", counted)
    with pytest.raises(KeyboardInterrupt):
        run_to_activations(of)
    made.append(-1)
    with pytest.raises(KeyboardInterrupt):  # made holds three: nothing more is made, nothing is lost
        made.pop()
        run_to_activations(of)
    monkeypatch.setattr(stage.ShardMaker, "__call__", lambda self, cut: (made.append(cut.number), plain(self, cut))[1])
    whole = run_to_activations(of)
    assert made == [0, 1, 2, 3, 4]
    reference = run_to_activations(study(inputs, tmp_path / "other"))
    assert dict(whole.manifest.files) == dict(reference.manifest.files)
    whole.verify()
    left = {path.name for path in (tmp_path / "store" / "activations" / whole.key).iterdir()}
    assert all(name.startswith("attempt-") or name == "manifest.json" for name in left)


@pytest.mark.parametrize("harm", ["truncated", "absent", "another shard"])
def test_a_harmed_shard_is_an_error_and_no_activations(inputs: Path, tmp_path: Path, harm: str) -> None:
    found = run_to_activations(study(inputs, tmp_path / "store"))
    path = tmp_path / "store" / found.manifest.path("layers.0.mlp_in/00001.safetensors")
    if harm == "truncated":
        path.write_bytes(path.read_bytes()[:-1])
    elif harm == "absent":
        path.unlink()
    else:  # as long, but not what the index says
        other = path.with_name("00004.safetensors").read_bytes()
        path.write_bytes(other + bytes(path.stat().st_size - len(other)))
    kept = CachedActivations(found, HOOKS)
    kept.rows(0, 992)
    with pytest.raises(ArtifactCorrupt, match=r"00001\.safetensors"):
        kept.rows(900, 1000)


def test_hook_points_that_are_not_kept(inputs: Path, tmp_path: Path) -> None:
    found = run_to_activations(study(inputs, tmp_path / "store"))
    with pytest.raises(HookError, match=r"layers\.1\.resid_post"):
        CachedActivations(found, ["layers.0.mlp_in", "layers.1.resid_post"])


def test_kept_activations_may_go_when_their_fit_is_there(inputs: Path, tmp_path: Path) -> None:
    of = study(inputs, tmp_path / "store")
    store = Store.open(of.store)
    run_to_activations(of)
    planned = make_plan(of, store)
    fit = planned.stage("fit")
    assert fit is not None
    with store.create("fit", fit.key, spec=fit.spec, inputs=fit.inputs) as out:
        out.write_json("summary.json", {"dictionaries": {}, "tokens": 0})
    activations = planned.stage("activations")
    assert activations is not None
    store.remove("activations", activations.key)
    again = make_plan(of, store)
    assert again.to_do == () and not store.has("activations", activations.key)
    assert [summary.stage for summary in run(of).stages] == ["corpus", "fit"]


@pytest.mark.s3
def test_shards_of_a_remote_store_are_fetched_as_they_are_read_and_let_go(
    inputs: Path, tmp_path: Path, s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cached, "RECENT_S", 0.0)  # as if time passed between the reads
    of = study(inputs, s3_url)
    found = run_to_activations(of)
    expected, reference = HOOKS[:2], CachedActivations(run_to_activations(study(inputs, tmp_path / "here")), HOOKS[:2])
    size = found.manifest.files["layers.0.mlp_in/00000.safetensors"].size
    kept = CachedActivations(found, expected, keep_bytes=3 * size)
    folder = found.store.cache_dir / "activations" / found.key
    shutil.rmtree(folder, ignore_errors=True)
    for start in range(0, TOKENS, 500):
        batch, other = kept.rows(start, start + 500), reference.rows(start, start + 500)
        assert all(torch.equal(batch[hook], other[hook]) for hook in expected)
    here = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.safetensors"))
    assert {Path(name).parent.name for name in here} == set(expected)  # the other hook points were never fetched
    assert sum((folder / name).stat().st_size for name in here) <= 5 * size
    assert any(name.endswith("00004.safetensors") for name in here)
    again = kept.rows(0, 10)  # fetched once more
    assert torch.equal(again[HOOKS[0]], reference.rows(0, 10)[HOOKS[0]])
    kept.close()


def test_shards_of_another_cut_are_not_taken_for_this_ones(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is stopped, and goes on with other micro-batches: the same tokens may be another shard's number."""
    plain, made = stage.ShardMaker.__call__, list[int]()

    def counted(self: Any, cut: stage.Cut) -> Any:
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append(cut.number)
        return plain(self, cut)

    cut = stage.cuts

    def one_less(tokens: int, micro_tokens: int) -> Any:
        """The first shard is half as long: all others begin elsewhere, and one ends where the first cut has one."""
        for found in cut(tokens, micro_tokens):
            if found.number == 0:
                yield stage.Cut(0, 0, 480)
                yield stage.Cut(1, 480, 992)
            else:
                yield stage.Cut(found.number + 1, found.start, found.stop)

    with monkeypatch.context() as patched:
        patched.setattr(stage.ShardMaker, "__call__", counted)
        patched.setattr(stage, "cuts", one_less)
        with pytest.raises(KeyboardInterrupt):
            run_to_activations(study(inputs, tmp_path / "store"))
    of = study(inputs, tmp_path / "store")
    found, reference = run_to_activations(of), run_to_activations(study(inputs, tmp_path / "reference"))
    assert dict(found.manifest.files) == dict(reference.manifest.files)
    found.verify()
    kept, expected = CachedActivations(found, HOOKS).rows(0, TOKENS), harvested(of)
    assert all(torch.equal(kept[hook], expected[hook]) for hook in HOOKS)


@pytest.fixture
def remote(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Activations in a store that is not in a folder."""
    found = run_to_activations(study(inputs, f"memory://{uuid.uuid4().hex}"))
    size = found.manifest.files["layers.0.mlp_in/00000.safetensors"].size
    return found, size


def test_two_readers_of_a_machine_do_not_remove_each_others_files(remote: Any) -> None:
    found, size = remote
    one, two = (CachedActivations(found, HOOKS[:1], keep_bytes=size) for _ in range(2))
    fetched = []
    plain = type(found)._chunks
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(type(found), "_chunks", lambda self, name: (fetched.append(name), plain(self, name))[1])
        for start in range(0, TOKENS - 992, 992):
            one.rows(start, start + 10)
            two.rows(TOKENS - 992 - start, TOKENS - 982 - start)
    one.close(), two.close()
    assert len(fetched) == len(set(fetched)) == 5


def test_a_file_that_another_process_lets_go_is_fetched_once_more(remote: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = remote
    kept = CachedActivations(found, HOOKS[:1])
    plain, taken = CachedActivations._fetched, []

    def taken_away(self: CachedActivations, file: Any) -> Path:
        path = plain(self, file)
        if not taken:
            taken.append(path)
            path.unlink()
        return path

    kept._reader._locate = lambda file: taken_away(kept, file)
    assert kept.rows(0, 10)[HOOKS[0]].shape == (10, 32) and taken[0].exists()
    kept.close()


def test_files_that_are_read_for_long_stay_marked(remote: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = remote
    kept, other = (CachedActivations(found, HOOKS[:1], keep_bytes=0) for _ in range(2))
    kept.rows(0, 10)
    path = found.local(f"{HOOKS[0]}/00000.safetensors", verify="size")
    os.utime(path, ns=(0, path.stat().st_mtime_ns))
    kept._marked -= cached.RECENT_S
    kept.rows(10, 20)
    other.rows(2000, 2010)
    assert path.exists()
    kept.close(), other.close()


def test_a_session_closes_what_it_reads(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = []
    monkeypatch.setattr(CachedActivations, "close", lambda self: closed.append(self))
    run(study(inputs, tmp_path / "store", corpus={"tokens": 1300}))
    assert len(closed) == 1


@pytest.mark.parametrize(
    ("said", "expected"), [("64G", 64 * 10**9), ("1.5K", 1500), ("1000", 1000), ("", cached.KEEP_BYTES)]
)
def test_the_bound_is_a_quantity(monkeypatch: pytest.MonkeyPatch, said: str, expected: int) -> None:
    monkeypatch.setenv("INTERP_CACHE_BYTES", said)
    assert cached.bound_from_environment() == expected


@pytest.mark.parametrize("said", ["64GB", "lots", "1.0001K", "-5"])
def test_a_bound_that_is_none(monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    monkeypatch.setenv("INTERP_CACHE_BYTES", said)
    with pytest.raises(SpecError, match=r"INTERP_CACHE_BYTES[^$]*64G"):
        cached.bound_from_environment()


@pytest.mark.ray
@pytest.mark.slow
def test_actors_put_the_shards_there_themselves(inputs: Path, tmp_path: Path, ray_engine: Engine) -> None:
    of = study(inputs, tmp_path / "store", corpus={"tokens": 2000}, fit={"harvesters": 2})
    store = Store.open(of.store)
    corpus, planned = make_plan(of, store).stages[:2]
    _run_one(of, store, corpus)
    _run_one(of, store, planned, ray_engine)
    kept = CachedActivations(artifact(of, "activations"), HOOKS)
    assert kept.tokens == 2000
    expected = harvested(of)
    found = kept.rows(0, 2000)
    for hook in HOOKS:
        torch.testing.assert_close(found[hook], expected[hook], rtol=1e-5, atol=1e-6)


def weights_of(of: Study) -> dict[str, Tensor]:
    made = artifact(of, "fit")
    names = [name for name in made.names() if name.endswith(".safetensors")]
    return {f"{name}/{tensor}": v for name in names for tensor, v in load_file(made.local(name)).items()}


def test_a_fit_from_kept_activations_is_the_fit_without_bit_for_bit(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = make_study(inputs, store=str(tmp_path / "plain"), trace=None)
    run(plain)
    of = study(inputs, tmp_path / "store")
    run_to_activations(of)
    monkeypatch.setattr(Harvester, "__init__", lambda *_, **__: pytest.fail("a model was asked for"))
    assert [(one.stage, one.cached) for one in run(of).stages] == [
        ("corpus", True),
        ("activations", True),
        ("fit", False),
    ]
    found, expected = weights_of(of), weights_of(plain)
    assert len(expected) >= 9 and found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


DRIVER = """
import json, sys
from pathlib import Path
from tiny_study import make_study, run
from interp.stages import activations as stage
stage.SHARD_TOKENS = 1000
run(make_study(Path(sys.argv[1]), **json.loads(sys.argv[2])))
"""


def test_a_driver_that_is_killed_leaves_its_shards_to_the_next(inputs: Path, tmp_path: Path) -> None:
    changes = {"store": str(tmp_path / "store"), "fit": {"cache": "model"}, "trace": None, "corpus": {"tokens": 19_000}}
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    command = [sys.executable, "-c", DRIVER, str(inputs), json.dumps(changes)]
    driver = subprocess.Popen(command, env=environment)
    of = make_study(inputs, **changes)
    deadline = time.monotonic() + 120
    while len(list((tmp_path / "store").glob("activations/*/scratch/parts/*.json"))) < 2:
        assert driver.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    driver.kill()
    driver.wait()
    (folder,) = (tmp_path / "store" / "activations").iterdir()
    assert not (folder / "manifest.json").exists()
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("attempt-1-*/*/*.safetensors")}
    assert len(kept) >= 2 * len(HOOKS)
    whole = run_to_activations(of)
    named = {tmp_path / "store" / whole.manifest.path(name) for name in whole.names()}
    again = [path for path, written in kept.items() if path in named and path.stat().st_mtime_ns == written]
    assert len(again) >= 2 * len(HOOKS)
    whole.verify()
    reference = run_to_activations(make_study(inputs, **{**changes, "store": str(tmp_path / "reference")}))
    assert dict(whole.manifest.files) == dict(reference.manifest.files)
    assert {path for path in folder.rglob("*") if path.is_file()} == {*named, folder / "manifest.json"}
