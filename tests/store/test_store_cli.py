"""`interp artifacts`, on every kind of store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from store_cases import KEY, OTHER, dead_writer, make
from typer.testing import CliRunner

from interp.cli.artifacts import app
from interp.errors import ArtifactMissing, SpecError
from interp.store import Store


def run(*arguments: str, status: int = 0) -> str:
    result = CliRunner().invoke(app, arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == status, result.output
    return result.stdout


def answer(*arguments: str, status: int = 0) -> Any:
    return json.loads(run(*arguments, "--json", status=status))


def test_ls(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    assert answer("ls", "--store", store.url) == []
    make(store, "corpus", KEY, a=b"1" * 1500)
    store.scratch("fit", OTHER).write("ck", b"")
    found = answer("ls", "--store", store.url)
    assert [(e["stage"], e["key"], e["state"]) for e in found] == [
        ("corpus", KEY, "finished"),
        ("fit", OTHER, "unfinished"),
    ]
    assert (found[0]["files"], found[0]["size"]) == (1, 1500)
    assert [e["stage"] for e in answer("ls", "--store", store.url, "--stage", "fit")] == ["fit"]
    monkeypatch.setenv("INTERP_STORE", store.url)
    lines = run("ls").splitlines()
    assert lines[0].split() == ["STAGE", "KEY", "STATE", "FILES", "SIZE", "CHANGED"]
    assert lines[1].split()[:6] == ["corpus", KEY[:16], "finished", "1", "1.5", "KB"]


def test_show(store: Store) -> None:
    make(store, a=b"1")
    shown = answer("show", f"fit/{KEY[:6]}", "--store", store.url)
    assert shown["spec"] == {"k": 32}
    assert shown["inputs"] == {"corpus": OTHER}
    assert shown["files"]["a"]["size"] == 1
    text = run("show", KEY, "--store", store.url)
    assert f"fit/{KEY}" in text
    assert '"k": 32' in text
    with pytest.raises(ArtifactMissing):
        run("show", "fit/00", "--store", store.url)


def test_get(store: Store, tmp_path: Path) -> None:
    make(store, **{"mlp/weights": b"w", "summary": b"{}"})
    out = tmp_path / "out"
    assert answer("get", KEY, str(out), "--store", store.url)["files"] == ["mlp/weights", "summary"]
    assert (out / "mlp" / "weights").read_bytes() == b"w"
    assert sorted(p.name for p in out.rglob("*") if p.is_file()) == ["summary", "weights"]
    run("get", KEY, str(tmp_path / "one"), "--file", "summary", "--store", store.url)
    assert [p.name for p in (tmp_path / "one").iterdir()] == ["summary"]
    assert Store.open(store.url).get("fit", KEY).read("summary") == b"{}"


def test_verify(store: Store) -> None:
    make(store, "corpus", KEY, a=b"1")
    make(store, "fit", OTHER, a=b"1", b=b"2")
    assert [result["ok"] for result in answer("verify", "--store", store.url)] == [True, True]
    store.backend.delete([f"fit/{OTHER}/b"])
    result = answer("verify", f"fit/{OTHER}", "--store", store.url, status=1)[0]
    assert not result["ok"]
    assert [(p["file"], p["found"]) for p in result["problems"]] == [("b", "absent")]
    assert "CORRUPT" in run("verify", "--store", store.url, status=1)
    assert answer("verify", OTHER, "--remove", "--store", store.url, status=1)[0]["removed"]
    assert [e.stage for e in store.list()] == ["corpus"]
    store.backend.write(f"corpus/{KEY}/manifest.json", b"{}")
    assert answer("verify", "--store", store.url, status=1)[0]["problems"][0]["file"] == "manifest.json"


def test_gc_only_tells_unless_it_is_told_to_delete(store: Store) -> None:
    make(store, "corpus", KEY)
    make(store, "fit", OTHER)
    dead_writer(store, stage="trace", key="77" * 32)
    assert answer("gc", "--store", store.url)["removed"] == []
    report = answer("gc", "--store", store.url, "--keep", KEY[:4])
    assert report["dry_run"]
    assert [e["stage"] for e in report["removed"]] == ["fit"]
    assert "--delete" in run("gc", "--store", store.url, "--keep", f"corpus/{KEY}")
    assert len(store.list()) == 3
    assert not answer("gc", "--store", store.url, "--keep", f"corpus/{KEY}", "--delete")["dry_run"]
    assert [e.stage for e in store.list()] == ["corpus", "trace"]
    with pytest.raises(SpecError, match="older-than"):
        run("gc", "--store", store.url, "--older-than", "soon")
