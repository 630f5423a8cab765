"""Making and reading artifacts, on every kind of store."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
from store_cases import KEY, OTHER, make, paths

from interp.errors import ArtifactMissing, LockHeld, StoreError
from interp.store import FileRecord, Store
from interp.store.backends import s3_transfer


def test_an_artifact_comes_back_as_it_was_written(store: Store) -> None:
    with store.create("fit", KEY, spec={"k": 32, "at": ("a", "b")}, inputs={"corpus": OTHER}) as writer:
        writer.write("mlp/layers.0.mlp/weights.safetensors", b"\x00\x01" * 500)
        writer.write("empty", b"")
        writer.write_json("summary.json", {"fvu": 0.25, "name": "é"})
        assert writer.names() == ("empty", "mlp/layers.0.mlp/weights.safetensors", "summary.json")
    assert writer.committed
    artifact = store.get("fit", KEY)
    assert artifact.names() == ("empty", "mlp/layers.0.mlp/weights.safetensors", "summary.json")
    assert artifact.names("mlp/") == ("mlp/layers.0.mlp/weights.safetensors",)
    assert artifact.read("mlp/layers.0.mlp/weights.safetensors") == b"\x00\x01" * 500
    assert artifact.read("empty") == b""
    assert artifact.json("summary.json") == {"fvu": 0.25, "name": "é"}
    manifest = artifact.manifest
    assert (manifest.stage, manifest.key, manifest.inputs) == ("fit", KEY, {"corpus": OTHER})
    assert manifest.spec == {"k": 32, "at": ["a", "b"]}
    assert manifest.files["empty"] == FileRecord(0, hashlib.sha256(b"").hexdigest())
    assert manifest.size == sum(len(artifact.read(name)) for name in artifact.names())


def test_the_layout_is_the_files_and_then_the_manifest(store: Store) -> None:
    make(store, weights=b"1")
    assert paths(store) == [f"fit/{KEY}/manifest.json", f"fit/{KEY}/weights"]


def test_there_is_no_manifest_before_all_files_are_there(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    create = store.backend.create

    def watched(path: str, data: bytes) -> bool:
        order.append(path)
        if path.endswith("manifest.json"):
            assert {f"fit/{KEY}/a", f"fit/{KEY}/b"} <= set(paths(store))
        return create(path, data)

    monkeypatch.setattr(store.backend, "create", watched)
    with store.create("fit", KEY, spec={}, inputs={}) as writer:
        writer.write("a", b"1")
        assert not store.has("fit", KEY)
        with pytest.raises(ArtifactMissing, match="never finished"):
            store.get("fit", KEY)
        writer.write("b", b"2")
    assert order == [f"fit/{KEY}/lock/000001.json", f"fit/{KEY}/manifest.json"]
    assert store.has("fit", KEY)


def test_a_failed_body_leaves_no_artifact_and_the_next_attempt_makes_it(store: Store) -> None:
    with pytest.raises(RuntimeError, match="no luck"), store.create("fit", KEY, spec={}, inputs={}) as writer:
        writer.write("a", b"half")
        raise RuntimeError("no luck")
    assert not writer.committed
    assert not store.has("fit", KEY)
    assert f"fit/{KEY}/a" not in paths(store)
    artifact = make(store, a=b"whole")
    assert artifact.read("a") == b"whole"
    assert artifact.manifest.attempt == 2
    assert paths(store) == [f"fit/{KEY}/attempt-2/a", f"fit/{KEY}/manifest.json"]


def test_a_finished_artifact_is_not_made_again(store: Store) -> None:
    make(store, a=b"1")
    with pytest.raises(LockHeld, match="finished already"), store.create("fit", KEY, spec={}, inputs={}):
        pytest.fail("the body must not run")
    assert paths(store) == [f"fit/{KEY}/a", f"fit/{KEY}/manifest.json"]


def test_big_files_go_up_and_down_in_parts(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_transfer, "PART", 5 * 2**20)
    monkeypatch.setattr(s3_transfer, "_RANGE", 2**20)
    source = tmp_path / "big"
    source.write_bytes(os.urandom(2**20) * 11 + b"tail")
    with store.create("fit", KEY, spec={}, inputs={}) as writer:
        writer.put(source, "big")
    artifact = store.get("fit", KEY)
    assert artifact.manifest.files["big"] == FileRecord.of(source.read_bytes())
    assert artifact.local("big").read_bytes() == source.read_bytes()
    artifact.verify()


@pytest.mark.s3
def test_big_files_never_stand_in_memory(tmp_path: Path, s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_transfer, "PART", 5 * 2**20)
    monkeypatch.setattr(s3_transfer, "_RANGE", 2**20)
    monkeypatch.setattr(s3_transfer, "AT_ONCE", 2)
    source = tmp_path / "big"
    with source.open("wb") as file:
        file.truncate(96 * 2**20)
    for url in (str(tmp_path / "store"), s3_url):
        store = Store.open(url)
        tracemalloc.start()
        with store.create("fit", KEY, spec={}, inputs={}) as writer:
            writer.put(source, "big")
        store.get("fit", KEY).local("big")
        store.verify(store.get("fit", KEY))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 75 * 2**20, url


def test_local_gives_a_path_once_verified(store: Store) -> None:
    artifact = make(store, **{"weights": b"w" * 4096, "config": b"{}"})
    path = artifact.local("weights")
    assert path.read_bytes() == b"w" * 4096
    assert artifact.local("weights") == path
    folder = artifact.local_dir()
    assert {p.name for p in folder.iterdir()} - {"manifest.json"} == {"weights", "config"}


def test_put_dir_and_move(store: Store) -> None:
    with store.create("fit", KEY, spec={}, inputs={}) as writer:
        work = writer.path_hint
        (work / "a").mkdir()
        (work / "a" / "x").write_bytes(b"x")
        (work / "y").write_bytes(b"y")
        writer.put_dir(work, "mlp", move=True)
        assert not (work / "y").exists()
    assert not work.exists()
    artifact = store.get("fit", KEY)
    assert artifact.names() == ("mlp/a/x", "mlp/y")
    artifact.verify()
    assert not [path for path in paths(store) if ".tmp-" in path]


def test_provenance_says_where_and_with_what(store: Store) -> None:
    with store.create("fit", KEY, spec={}, inputs={}, provenance={"workers": 2}) as writer:
        writer.write("a", b"")
    provenance = store.get("fit", KEY).manifest.provenance
    assert provenance["workers"] == 2
    assert provenance["started"] <= provenance["finished"]
    assert provenance["versions"]["python"].startswith(f"{sys.version_info.major}.")
    assert {"host", "platform"} <= provenance.keys()


@pytest.mark.parametrize(
    "name",
    ["", "/a", "a//b", "../a", "a/../b", "./a", "a\\b", "a\nb", "manifest.json", "lock/1", "scratch/x", "attempt-2/x"],
)
def test_a_name_that_leaves_the_folder_or_is_reserved_is_refused(store: Store, name: str) -> None:
    with pytest.raises(StoreError, match="name"), store.create("fit", KEY, spec={}, inputs={}) as writer:
        writer.write(name, b"")


@pytest.mark.parametrize(("stage", "key"), [("Fit", KEY), ("fit/x", KEY), ("fit", "a/b"), ("fit", ""), ("fit", "..")])
def test_a_stage_or_key_that_is_none_is_refused(store: Store, stage: str, key: str) -> None:
    with pytest.raises(StoreError, match="cannot be a"):
        store.has(stage, key)


def test_what_is_not_json_is_refused_before_the_work_begins(store: Store) -> None:
    for spec in ({"a": float("nan")}, {"a": Path("x")}):
        with (
            pytest.raises(StoreError, match="cannot be written as JSON"),
            store.create("fit", KEY, spec=spec, inputs={}),
        ):
            pytest.fail("the body must not run")
    assert paths(store) == []


def test_a_name_that_the_artifact_lacks(store: Store) -> None:
    artifact = make(store, a=b"1", b=b"2")
    with pytest.raises(ArtifactMissing, match="a, b"):
        artifact.read("c")


def test_a_writer_is_used_in_its_block_only(store: Store) -> None:
    writer = store.create("fit", KEY, spec={}, inputs={})
    with pytest.raises(StoreError, match="with"):
        writer.write("a", b"")


def test_stores_and_artifacts_travel_by_url(store: Store) -> None:
    artifact = pickle.loads(pickle.dumps(make(store, a=b"1")))
    assert artifact.read("a") == b"1"
    assert artifact.store.url == store.url
    assert pickle.loads(pickle.dumps(store.scratch("fit", KEY))) is not None


def test_many_small_files_from_threads(store: Store) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with store.create("trace", KEY, spec={}, inputs={}) as writer, ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: writer.write(f"graphs/{i:03d}.json", json.dumps(i).encode()), range(40)))
    artifact = store.get("trace", KEY)
    assert [artifact.json(name) for name in artifact.names()] == list(range(40))


def test_importing_the_store_is_quick_and_light() -> None:
    code = (
        "import sys, time; start = time.perf_counter(); import interp.store; took = time.perf_counter() - start;"
        "heavy = {'torch', 'ray', 's3fs', 'botocore', 'fsspec', 'numpy'} & set(sys.modules);"
        "print(took, *heavy)"
    )
    took, *heavy = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert heavy == []
    assert float(took) < 1.0  # about 0.05 when nothing else runs
