"""`interp convert` between all formats, and as a repository of the hub: its card, and what is sent where."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
import yaml
from foreign_cases import D, F
from huggingface_hub import constants
from peer_cases import ours, output, write_dl, write_saelens, write_sparsify
from tiny_models import make

from interp.dictionaries import SparseDictionary
from interp.dictionaries.foreign import Claim, read_dictionaries
from interp.sources.dictionaries import dictionary_revision, fetched
from interp.wrapper import HookedModel


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    make("llama").save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def claimed(model: str) -> Claim:
    from interp.models.loading import load_model

    return Claim(HookedModel(load_model(model)), model)


@pytest.fixture(autouse=True)
def no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)


def convert(*arguments: object) -> int:
    from interp.cli.main import main

    with pytest.raises(SystemExit) as left:
        main(["convert", *map(str, arguments)])
    return int(left.value.code or 0)


def saved(folder: Path, claimed: Claim, *dictionaries: SparseDictionary) -> Path:
    """Ours, of the model on disk."""
    for dictionary in dictionaries:
        identity = claimed.identity("test").model_copy(update={"foreign": None})
        dictionary.config = dictionary.config.model_copy(update={"model": identity, "corpus": "c0ffee"})
        dictionary.save(folder / dictionary.config.at)
    return folder


@pytest.mark.parametrize("peer", ["saelens", "sparsify", "dictionary-learning"])
def test_every_format_becomes_every_other(peer: str, model: str, claimed: Claim, tmp_path: Path, capsys: Any) -> None:
    if peer == "saelens":
        write_saelens(tmp_path / "theirs" / "any", "topk", rescale_acts_by_decoder_norm=True)
    elif peer == "sparsify":
        write_sparsify(tmp_path / "theirs" / "layers.1")
    else:
        write_dl(tmp_path / "theirs" / "trainer_0", "AutoEncoderTopK")
    at = "layers.1.resid_post"
    first = read_dictionaries(tmp_path / "theirs", claimed)[at]
    for target in ("interp", "saelens", "sparsify"):
        assert convert(tmp_path / "theirs", tmp_path / target, "--model", model, "--to", target, "--json") == 0
        told = json.loads(capsys.readouterr().out)
        assert (told["from"], told["to"], told["dictionaries"]) == (peer, target, [at])
        again = read_dictionaries(tmp_path / target, claimed, target)[at]  # type: ignore[arg-type]
        assert torch.equal(output(again), output(first))
    for options in (["--to", "dictionary-learning"], ["--to", "circuit-tracer"]):
        assert convert(tmp_path / "theirs", tmp_path / "x", "--model", model, *options) in (1, 2)
        assert not (tmp_path / "x").exists()
    assert convert(tmp_path / "theirs", tmp_path / "saelens", "--model", model, "--to", "saelens", "--force") == 0


def evaluation(path: Path, *names: str) -> Path:
    rows = [
        {"dictionary": name, "at": at, "tokens": 4096, "fvu": 0.0625 + i, "l0": 5.0, "ce_recovered": 0.9}
        for i, name in enumerate(names)
        for at in ("layers.1.resid_post", "layers.1.mlp", "elsewhere")
    ]
    path.write_text(json.dumps(rows))
    return path


def front_matter(text: str) -> dict[str, Any]:
    _, front, _ = text.split("---\n", 2)
    said = yaml.safe_load(front)
    assert isinstance(said, dict)
    return said


def test_a_repository_has_a_card_and_reads_back(model: str, claimed: Claim, tmp_path: Path) -> None:
    first, second = ours("sae", "topk"), ours("skip-transcoder", "batchtopk")
    source = saved(tmp_path / "artifact" / "set", claimed, first, second)
    (tmp_path / "artifact" / "manifest.json").write_text(json.dumps({"stage": "fit", "key": "5eed" * 16}))
    figures = evaluation(tmp_path / "evaluation.json", "set")
    options = ("--model", model, "--model-name", "org/tiny", "--to", "hub", "--evaluation", figures)
    assert convert(source, tmp_path / "out", *options) == 0
    text = (tmp_path / "out" / "README.md").read_text()
    said = front_matter(text)
    assert said["library_name"] == "interp" and said["base_model"] == "org/tiny"
    assert {"interp", "sparse-autoencoder", "transcoder"} <= set(said["tags"])
    assert "license" not in said and "# license: yours to choose" in text
    for row in (
        f"| layers.1.resid_post | sae | layers.1.resid_post | layers.1.resid_post | {F} | {D} to {D} | topk | 5 |",
        f"| layers.1.mlp | skip-transcoder | layers.1.mlp_in | layers.1.mlp_out | {F} | {D} to {D} | batchtopk | 5 |",
        "| layers.1.mlp | 0.0625 | 5 | 0.9 |",
        "On 4,096 held-out tokens.",
        "from: hf://ORG/NAME",
        "5eed" * 16,
        "c0ffee",
        claimed.model.fingerprint,
    ):
        assert row in text
    assert "elsewhere" not in text and model not in text  # nor where the model lies on this machine
    provenance = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert provenance["artifact"] == {"stage": "fit", "key": "5eed" * 16}
    assert provenance["dictionaries"]["layers.1.mlp"]["model"]["fingerprint"] == claimed.model.fingerprint
    assert provenance["evaluation"]["layers.1.mlp"]["fvu"] == 0.0625
    found = read_dictionaries(tmp_path / "out", claimed)
    for dictionary in (first, second):
        named = dictionary.config.model.model_copy(update={"source": "tiny"})  # type: ignore[union-attr]
        assert found[dictionary.config.at].config == dictionary.config.model_copy(update={"model": named})
        assert torch.equal(output(found[dictionary.config.at]), output(dictionary))


@pytest.mark.parametrize(
    ("layout", "told"),
    [
        ("saelens", 'SAE.from_pretrained("org/name", "blocks.1.hook_resid_post")'),
        ("sparsify", 'SparseCoder.load_many("org/name")'),
    ],
)
def test_a_card_says_how_its_layout_is_loaded(
    layout: str, told: str, model: str, claimed: Claim, tmp_path: Path
) -> None:
    source = saved(tmp_path / "ours", claimed, ours("sae", "topk"))
    options = ("--model", model, "--to", "hub", "--layout", layout, "--push", "org/name")
    assert convert(source, tmp_path / "out", *options) == 0
    text = (tmp_path / "out" / "README.md").read_text()
    assert told in text and "hf://org/name" in text and layout in front_matter(text)["tags"]
    assert "base_model" not in front_matter(text)  # a folder of this machine is no model of the hub
    assert list(read_dictionaries(tmp_path / "out", claimed, layout)) == ["layers.1.resid_post"]


@pytest.mark.parametrize("layout", ["interp", "saelens", "sparsify", "circuit-tracer"])
@pytest.mark.parametrize("relative", [False, True])
def test_no_path_of_this_machine_is_uploaded(
    layout: str, relative: bool, claimed: Claim, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted = tmp_path / "planted-secret" / "tiny"
    planted.parent.mkdir()
    planted.symlink_to(model)
    monkeypatch.chdir(tmp_path)
    said = "planted-secret/tiny" if relative else str(planted)  # the first looks like a repository of the hub
    made = [ours("sae", "topk")]
    if layout == "circuit-tracer":
        places = [f"layers.{i}.mlp" for i in range(claimed.n_layers)]
        made = [ours("transcoder", "relu", hooks=(f"{at}_in", f"{at}_out")) for at in places]
    source = saved(tmp_path / "ours", Claim(claimed.model, said), *made)
    options = ("--model", said, "--to", "hub", "--layout", layout, "--push", "org/name")
    assert convert(source, tmp_path / "out", *options) == 0
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(files) >= 4
    for path in files:
        content = path.read_bytes()
        assert b"planted-secret" not in content and str(tmp_path).encode() not in content, path
    assert "tiny" in (tmp_path / "out" / "README.md").read_text()
    assert json.loads((tmp_path / "out" / "provenance.json").read_text())["model_name"] == "tiny"
    assert len(read_dictionaries(tmp_path / "out", claimed, layout)) == len(made)


def test_without_a_token_nothing_is_sent(
    model: str, claimed: Claim, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub, "HfApi", None)  # nobody is asked
    source = saved(tmp_path / "ours", claimed, ours("sae", "topk"))
    assert convert(source, tmp_path / "out", "--model", model, "--to", "hub", "--push", "org/name") == 0
    told = capsys.readouterr().out
    assert "nothing was sent" in told and "org/name" in told
    for name in ("README.md", "provenance.json", "layers.1.resid_post/weights.safetensors"):
        size = (tmp_path / "out" / name).stat().st_size
        assert f"{size:,}  {name}" in told


class Api:
    """A hub that takes what it is given, into a folder."""

    sent: dict[str, Any]

    def __init__(self, token: str | None = None):
        Api.sent = {"token": token}

    def create_repo(self, repository: str, *, repo_type: str, exist_ok: bool) -> None:
        assert (repo_type, exist_ok) == ("model", True)
        Api.sent["repository"] = repository

    def upload_folder(self, *, repo_id: str, repo_type: str, folder_path: Path, commit_message: str) -> Any:
        if repo_id == "org/refused":
            raise ValueError("403: this token may not write")
        Api.sent["files"] = {
            path.relative_to(folder_path).as_posix(): path.read_bytes()
            for path in folder_path.rglob("*")
            if path.is_file()
        }
        return SimpleNamespace(oid="d" * 40)


def test_what_is_sent_is_what_the_hub_gives_back(
    model: str, claimed: Claim, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setenv("HF_TOKEN", "secret")
    dictionary = ours("sae", "batchtopk")
    source = saved(tmp_path / "ours", claimed, dictionary)
    options = ("--model", model, "--to", "hub", "--push", "org/name", "--json")
    assert convert(source, tmp_path / "out", *options) == 0
    told = capsys.readouterr().out
    assert json.loads(told)["pushed"]["commit"] == "d" * 40 and "secret" not in told
    assert (Api.sent["token"], Api.sent["repository"]) == ("secret", "org/name")
    sent = Api.sent["files"]

    class Reading:
        def repo_info(self, repository: str, **_: Any) -> Any:
            return SimpleNamespace(sha="d" * 40, siblings=[SimpleNamespace(rfilename=name) for name in sent])

    def download(repository: str, name: str, **_: Any) -> str:
        path = tmp_path / "cache" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(sent[name])
        return str(path)

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    monkeypatch.setattr(huggingface_hub, "HfApi", Reading)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    found = read_dictionaries(fetched("hf://org/name"), claimed)
    assert torch.equal(output(found["layers.1.resid_post"]), output(dictionary))
    assert dictionary_revision("hf://org/name")


def test_a_hub_that_refuses(
    model: str, claimed: Claim, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setenv("HF_TOKEN", "secret")
    source = saved(tmp_path / "ours", claimed, ours("sae", "topk"))
    assert convert(source, tmp_path / "out", "--model", model, "--to", "hub", "--push", "org/refused") == 1
    told = capsys.readouterr().err
    assert "403: this token may not write" in told and "secret" not in told
    assert (tmp_path / "out" / "README.md").is_file()  # it can be sent again


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--to", "saelens", "--push", "org/name"], "with --to hub"),
        (["--layout", "saelens"], "with --to hub"),
        (["--to", "hub", "--push", "name"], "org/name"),
        (["--to", "hub", "--layout", "gemma-scope"], "only read"),
        (["--to", "hub", "--layout", "nonsense"], "no such format"),
        (["--to", "hub", "--evaluation", "two.json"], "name the set with --set"),
        (["--to", "hub", "--evaluation", "two.json", "--set", "c"], "no figures of these places"),
        (["--to", "hub", "--evaluation", "none.json"], "no evaluation of dictionaries"),
    ],
)
def test_what_convert_refuses(
    options: list[str],
    told: str,
    model: str,
    claimed: Claim,
    tmp_path: Path,
    capsys: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    evaluation(tmp_path / "two.json", "a", "b")
    (tmp_path / "none.json").write_text("[1]")
    source = saved(tmp_path / "ours", claimed, ours("sae", "topk"))
    assert convert(source, tmp_path / "out", "--model", model, *options) in (1, 2)
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_card_is_replaced_and_a_readme_of_ones_own_is_not(
    model: str, claimed: Claim, tmp_path: Path, capsys: Any
) -> None:
    source = saved(tmp_path / "ours", claimed, ours("sae", "topk"))
    options = ("--model", model, "--to", "hub", "--force")
    for _ in range(2):
        assert convert(source, tmp_path / "out", *options) == 0
    (tmp_path / "out" / "README.md").write_text("# my words")
    assert convert(source, tmp_path / "out", *options) == 2
    assert "is more than the dictionaries" in capsys.readouterr().err
    assert (tmp_path / "out" / "README.md").read_text() == "# my words"


def test_a_study_uses_them(model: str, claimed: Claim, tmp_path: Path) -> None:
    """What a study and `interp eval` go through: planned by content, read, ready to use."""
    from interp.stages.dictionary_sets import DictionarySet

    write_saelens(tmp_path / "saelens" / "any", "jumprelu")
    write_sparsify(tmp_path / "sparsify" / "layers.1.mlp", transcode=True)
    write_dl(tmp_path / "dl" / "trainer_0", "BatchTopKSAE")
    for name, at in (("saelens", "layers.1.resid_post"), ("sparsify", "layers.1.mlp"), ("dl", "layers.1.resid_post")):
        folder = str(tmp_path / name)
        one = DictionarySet(name, None, folder, model, content=dictionary_revision(folder))
        (dictionary,) = one.load(claimed.model).values()  # type: ignore[arg-type]
        assert dictionary.config.at == at and not dictionary.training
        assert dictionary.config.model is not None and dictionary.config.model.source == model
        x = torch.randn(4, D)
        assert torch.isfinite(dictionary.encode_at(0, x)).all() and (dictionary.encode_at(0, x) >= 0).all()
