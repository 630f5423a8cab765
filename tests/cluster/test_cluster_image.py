"""The image's checks: each rule refuses a Dockerfile that breaks it, and ours breaks none."""

from __future__ import annotations

import sys
from importlib.metadata import PathDistribution
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))  # the tools are scripts that stand beside one another

import check_image  # noqa: E402
import dockerfile  # noqa: E402
import image_install  # noqa: E402

LABELS = " ".join(
    f'org.opencontainers.image.{name}="x"' for name in ("title", "version", "revision", "source", "licenses")
)
GOOD = f"""\
ARG BASE=debian:12.12-slim
FROM python:3.11.14-slim AS build
WORKDIR /build
COPY requirements.lock ./
RUN pip install --no-cache-dir --requirement requirements.lock
FROM ${{BASE}}
LABEL {LABELS}
RUN apt-get update \\
    # a comment in between
    && apt-get install -y --no-install-recommends bash wget \\
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt /opt
USER 1000:1000
HEALTHCHECK --interval=60s CMD ["python", "-c", "import interp"]
CMD ["interp"]
"""
FILES = {"requirements.lock": 10, "interp/a.py": 10}

BROKEN = [
    ("pinned_base", "debian:12.12-slim", "debian:latest", "FROM debian:latest moves"),
    ("pinned_base", "debian:12.12-slim", "debian", "FROM debian has no tag"),
    ("pinned_base", "debian:12.12-slim", "registry:5000/debian", "has no tag"),
    ("pinned_base", "ARG BASE=debian:12.12-slim", "ARG BASE", "its ARG has no default"),
    ("not_root", "USER 1000:1000", "", "no USER"),
    ("not_root", "USER 1000:1000", "USER interp", "USER interp is no number"),
    ("not_root", "USER 1000:1000", "USER 1000:1000\nUSER 0", "the last USER is root"),
    ("no_add", "COPY requirements.lock", "ADD https://example.org/a.tgz", "and fetch in a RUN"),
    ("apt", "--no-install-recommends ", "", "without --no-install-recommends"),
    ("apt", "apt-get install -y", "apt-get install", "without -y"),
    ("apt", "apt-get update \\\n", "true \\\n", "without apt-get update in the same RUN"),
    ("apt", "rm -rf /var/lib/apt/lists/*", "true", "apt's lists stay in the layer"),
    ("apt", "apt-get update", "apt-get update && apt-get upgrade -y", "take a newer base"),
    ("apt", "apt-get update", "apt update", "apt is for people"),
    ("no_secrets", "USER 1000", "ENV AWS_SECRET_ACCESS_KEY=abc\nUSER 1000", "ENV AWS_SECRET_ACCESS_KEY looks like"),
    ("no_secrets", "WORKDIR", "ARG HF_TOKEN\nWORKDIR", "ARG HF_TOKEN looks like a secret"),
    ("no_secrets", "WORKDIR", "ENV INDEX=https://me:pass@example.org/simple\nWORKDIR", "a URL with a password"),
    ("copy_from", "--from=build", "--from=builder", "--from=builder is no stage before this one"),
    ("copy_from", "--from=build", "--from=busybox:latest", "is no stage before this one"),
    ("copy_from", "RUN pip", "RUN --mount=type=bind,from=later,target=/x pip", "--from=later is no stage"),
    ("copied_exists", "COPY requirements.lock", "COPY tests", "COPY tests: not in the context"),
    ("copied_exists", "COPY requirements.lock", "COPY interp/*.txt", "not in the context"),
    ("no_compiler", "bash wget", "bash gcc wget", "gcc is in the final image"),
    ("no_compiler", "bash wget", "bash python3-dev=3.11 wget", "python3-dev is in the final image"),
    ("no_pip_cache", "--no-cache-dir ", "", "pip install without --no-cache-dir"),
    ("no_pip_cache", "--requirement requirements.lock", "torch", "nothing fixes the versions"),
    ("described", "org.opencontainers.image.revision", "revision", "image.revision is missing"),
    ("described", "HEALTHCHECK --interval=60s", "#", "HEALTHCHECK is missing"),
    ("described", 'CMD ["python", "-c", "import interp"]', "NONE", "HEALTHCHECK is missing"),
    ("exec_form", 'CMD ["interp"]', "CMD interp", "CMD interp is no JSON array"),
    ("exec_form", 'CMD ["interp"]', "ENTRYPOINT interp", "ENTRYPOINT interp is no JSON array"),
    ("exec_form", 'CMD ["python", "-c", "import interp"]', "CMD true", "HEALTHCHECK CMD is no JSON array"),
    ("absolute_folders", "WORKDIR /build", "WORKDIR build", "WORKDIR build is relative"),
    ("for_kuberay", "bash wget", "bash", "wget is not installed: KubeRay needs it"),
]


def test_a_good_one_has_no_problems() -> None:
    assert check_image.check(GOOD, FILES) == []


@pytest.mark.parametrize(("rule", "old", "new", "message"), BROKEN)
def test_each_rule_refuses_what_breaks_it(rule: str, old: str, new: str, message: str) -> None:
    assert old in GOOD
    found = check_image.check(GOOD.replace(old, new), FILES)
    assert [problem.rule for problem in found if message in problem.message] == [rule], found


def test_the_context_is_small_and_without_history() -> None:
    large = check_image.check(GOOD, FILES | {"interp/model.bin": 10**9})
    assert [problem.rule for problem in large] == ["small_context"]
    history = check_image.check(GOOD, FILES | {".git/config": 1})
    assert [problem.message for problem in history] == [".git/ is in the context: see .dockerignore"]


def test_every_rule_is_broken_above() -> None:
    broken = {rule for rule, *_ in BROKEN} | {"small_context"}
    assert broken == {rule.__name__ for rule in check_image.RULES}


def test_a_compiler_in_a_stage_that_the_last_one_is_made_from_counts() -> None:
    text = GOOD.replace("FROM ${BASE}\n", "FROM ${BASE} AS tools\n").replace("bash wget", "bash gcc wget")
    text = text.replace("USER 1000:1000", "FROM tools AS runtime\nUSER 1000:1000")
    assert "no_compiler" in [problem.rule for problem in check_image.check(text, FILES)]


def test_a_problem_is_told_with_its_line() -> None:
    [problem] = check_image.check(GOOD.replace("USER 1000:1000", "USER interp"), FILES)
    assert GOOD.splitlines()[problem.line - 1] == "USER 1000:1000"


def test_our_dockerfile_is_clean(capsys: pytest.CaptureFixture[str]) -> None:
    assert check_image.main([]) == 0, capsys.readouterr().out


def test_ours_runs_as_the_user_that_owns_the_volumes() -> None:
    stage = dockerfile.parse((ROOT / "Dockerfile").read_text()).stages[-1]
    assert [each.value for each in stage.all("USER")] == ["1000:1000"]
    environment = {key: value for each in stage.all("ENV") for key, value in each.pairs.items()}
    assert environment["INTERP_CACHE_DIR"] == "/cache"
    assert environment["HF_HOME"] == "/cache/huggingface"
    assert environment["RAY_USAGE_STATS_ENABLED"] == "0"
    assert environment["PYTHONUNBUFFERED"] == "1"
    # What KubeRay runs is `ray` and `python`, by their names.
    assert environment["PATH"].startswith("/opt/interp/bin:")


def test_a_file_is_parsed_as_docker_does_it() -> None:
    text = (
        "# syntax=docker/dockerfile:1.7\nARG A=1\nARG B=x:$A\nFROM ${B} as one\n"
        "RUN echo a \\\n# gone\n\n  && echo b\n"
        "RUN <<EOF\napt-get install gcc\nFROM nothing\nEOF\n"
        'COPY --chown=1:1 --from=0 ["a b", "c/"]\n'
        "ENV old style value\nENV X=1 \\\n    Y='two words'\n"
        "FROM one\nRUN --mount=type=cache,target=/c true\n"
    )
    one, two = dockerfile.parse(text).stages
    assert (one.name, one.base, two.base) == ("one", "x:1", "one")
    echo, heredoc, copy, old, new = one.instructions
    assert (echo.value, echo.line) == ("echo a && echo b", 5)
    assert heredoc.heredocs == ("apt-get install gcc\nFROM nothing",)
    assert (copy.flag("from"), copy.flag("chown"), copy.words) == ("0", "1:1", ["a b", "c/"])
    assert (old.pairs, new.pairs) == ({"old": "style value"}, {"X": "1", "Y": "two words"})
    assert two.instructions[0].flag("mount") == "type=cache,target=/c"


@pytest.mark.parametrize("text", ["", "# nothing\n", "RUN true\nFROM a:1\n"])
def test_what_is_no_dockerfile_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="FROM"):
        dockerfile.parse(text)


@pytest.mark.parametrize(
    ("ignore", "left"),
    [
        ("", ["a.py", "b/c.py", "b/d/e.pyc", "b/d/f.txt"]),
        ("b\n", ["a.py"]),
        ("*.py\n", ["b/c.py", "b/d/e.pyc", "b/d/f.txt"]),
        ("**/*.py\n", ["b/d/e.pyc", "b/d/f.txt"]),
        ("*\n!b/d\n**/*.pyc\n", ["b/d/f.txt"]),
        ("# a comment\n/b/?/f.txt\n", ["a.py", "b/c.py", "b/d/e.pyc"]),
    ],
)
def test_the_last_pattern_that_fits_decides(tmp_path: Path, ignore: str, left: list[str]) -> None:
    for name in ("a.py", "b/c.py", "b/d/e.pyc", "b/d/f.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / ".dockerignore").write_text(ignore)
    assert [name for name in dockerfile.context_files(tmp_path) if name != ".dockerignore"] == left


def test_the_build_stage_runs_below_a_folder(tmp_path: Path) -> None:
    """Its folders are moved, what COPY names is there, and apt-get is left out."""
    root, folder = tmp_path / "context", tmp_path / "image"
    (root / "interp").mkdir(parents=True)
    (root / "interp/a.py").write_text("a")
    (root / "lock").write_text("l")
    text = (
        "FROM a:1 AS build\nARG NAME=world\nENV HELLO=hello\nRUN apt-get install nothing\nWORKDIR /build\n"
        "COPY lock ./\nCOPY interp ./interp\nCOPY lock /opt/x/\n"
        "RUN mkdir -p /opt/interp && cat lock interp/a.py > /opt/interp/out && echo $HELLO $NAME >> /opt/interp/out\n"
    )
    moved = {"/build": f"{folder}/build", "/opt/": f"{folder}/opt/"}
    image_install.run_stage(dockerfile.parse(text).stages[0], root, moved)
    assert (folder / "opt/interp/out").read_text() == "lahello world\n"
    assert (folder / "opt/x/lock").read_text() == "l"


def test_what_the_lock_does_not_name_is_found(tmp_path: Path) -> None:
    installed = []
    for name, version in (("Torch", "2.13.0+cpu"), ("rich", "14.0"), ("left_pad", "1")):
        folder = tmp_path / f"{name}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        installed.append(PathDistribution(folder))
    found = image_install.not_of_the_lock(installed, "# made by hand\ntorch==2.13.0\nrich==15.0.0\n")
    assert found == ["left-pad 1, the lock has none", "rich 14.0, the lock has 15.0.0"]
