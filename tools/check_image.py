"""Check the image where none can be built: the Dockerfile's rules, and with --install what its commands install.

    python tools/check_image.py              # reads Dockerfile and .dockerignore; under a second
    python tools/check_image.py --install    # runs the build stage's own commands in a clean folder; minutes

Each rule is a function of `RULES` below: its docstring says what it asks and why. Exit codes: 0 good, 1 problems.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dockerfile import Dockerfile, Instruction, Stage, context_files, parse, substitute

_ROOT = Path(__file__).resolve().parent.parent
_LARGEST_CONTEXT = 64_000_000
_LABELS = tuple(f"org.opencontainers.image.{name}" for name in ("title", "version", "revision", "source", "licenses"))
_SECRET = re.compile(r"SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIAL|PRIVATE|API_?KEY|ACCESS_KEY", re.IGNORECASE)
_LOGIN = re.compile(r"://[^/\s\"'@]+:[^/\s\"'@]+@")
_COMPILERS = re.compile(
    r"(gcc|g\+\+|cc|clang|llvm|tcc|make|cmake|ninja-build|build-essential|git|rustc|cargo)(-[\d.]+)?|.*-dev"
)
_KUBERAY_NEEDS = ("bash", "wget")


@dataclass(frozen=True)
class Image:
    """What the rules look at.

    Attributes:
        files: of the build context, after .dockerignore, with their sizes.
    """

    dockerfile: Dockerfile
    files: dict[str, int]

    @property
    def final(self) -> Stage:
        return self.dockerfile.stages[-1]

    @property
    def shipped(self) -> Iterator[Instruction]:
        """Every instruction whose layer is in the image."""
        for stage in reversed(self.dockerfile.behind(self.final)):
            yield from stage.instructions


@dataclass(frozen=True)
class Problem:
    line: int
    rule: str
    message: str


Found = Iterator[tuple[int, str]]


def pinned_base(image: Image) -> Found:
    """Every base has a tag other than latest, or a digest: the same file makes the same image."""
    earlier: set[str] = set()
    for stage in image.dockerfile.stages:
        if stage.base not in earlier and (why := _unpinned(stage.base)):
            yield stage.line, why
        earlier.add(stage.name)


def not_root(image: Image) -> Found:
    """The last USER is a number other than 0: Kubernetes' runAsNonRoot cannot look up a name."""
    users = [each for each in image.shipped if each.name == "USER"]
    if not users:
        yield image.final.line, "no USER: the image would run as root"
        return
    user, _, group = users[-1].value.partition(":")
    if not user.isdigit() or (group and not group.isdigit()):
        yield users[-1].line, f"USER {users[-1].value} is no number"
    elif int(user) == 0:
        yield users[-1].line, "the last USER is root"


def no_add(image: Image) -> Found:
    """COPY in place of ADD: ADD fetches URLs that nobody verified, and unpacks archives unasked."""
    for each in _everywhere(image, "ADD"):
        yield each.line, f"ADD {each.value}: use COPY" + (", and fetch in a RUN" if "://" in each.value else "")


def apt(image: Image) -> Found:
    """apt-get: updated, without what is recommended, and its lists gone, all in one layer."""
    for each in _everywhere(image, "RUN"):
        if re.search(r"(^|[\s;&|])apt\s+(install|update|upgrade)", each.script):
            yield each.line, "apt is for people: use apt-get"
        if re.search(r"apt-get\s[^&;|]*upgrade", each.script):
            yield each.line, "apt-get upgrade: take a newer base"
        if not _packages(each):
            continue
        if "--no-install-recommends" not in each.script:
            yield each.line, "apt-get install without --no-install-recommends"
        if not re.search(r"apt-get\s[^&;|]*install[^&;|]*\s(-y|--yes|-qy|-yq)\b", each.script):
            yield each.line, "apt-get install without -y would wait for an answer"
        if not re.search(r"apt-get\s+(-\w+\s+)*update", each.script):
            yield each.line, "apt-get install without apt-get update in the same RUN"
        if "rm -rf /var/lib/apt/lists" not in each.script:
            yield each.line, "apt's lists stay in the layer: rm -rf /var/lib/apt/lists/* in the same RUN"


def no_secrets(image: Image) -> Found:
    """No secret in ARG, ENV or LABEL: all three can be read from the image."""
    for name in ("ARG", "ENV", "LABEL"):
        for each in _everywhere(image, name):
            for key in each.pairs:
                if _SECRET.search(key):
                    yield each.line, f"{name} {key} looks like a secret: use RUN --mount=type=secret"
    for name in ("ARG", "ENV", "LABEL", "RUN"):
        for each in _everywhere(image, name):
            if _LOGIN.search(each.script):
                yield each.line, f"{name} has a URL with a password in it"


def copy_from(image: Image) -> Found:
    """COPY --from and RUN --mount=from name an earlier stage, or an image with a fixed tag."""
    for index, stage in enumerate(image.dockerfile.stages):
        earlier = {each.name for each in image.dockerfile.stages[:index]} | {str(number) for number in range(index)}
        for each in stage.instructions:
            mounts = [
                part.removeprefix("from=") for part in (each.flag("mount") or "").split(",") if part[:5] == "from="
            ]
            for source in [*mounts, *filter(None, [each.flag("from")])]:
                if source not in earlier and (":" not in source or _unpinned(source)):
                    yield each.line, f"--from={source} is no stage before this one"


def copied_exists(image: Image) -> Found:
    """What COPY names is in the context, after .dockerignore."""
    for stage in image.dockerfile.stages:
        known = dict(image.dockerfile.arguments)
        for each in stage.instructions:
            if each.name in ("ARG", "ENV"):
                known |= {key: value or known.get(key, "") for key, value in each.pairs.items()}
            if each.name != "COPY" or each.flag("from") is not None or each.heredocs:
                continue
            for source in each.words[:-1]:
                name = substitute(source, known).removeprefix("./").strip("/")
                pattern = re.compile(re.escape(name).replace(r"\*", "[^/]*").replace(r"\?", "[^/]") + "(/.*)?")
                if name not in ("", ".") and not any(pattern.fullmatch(file) for file in image.files):
                    yield each.line, f"COPY {source}: not in the context (does .dockerignore leave it out?)"


def no_compiler(image: Image) -> Found:
    """The final image has no compiler, headers or git: what is not there cannot be used against it."""
    for each in image.shipped:
        for package in _packages(each):
            if _COMPILERS.fullmatch(package):
                yield each.line, f"{package} is in the final image: install it in the build stage"


def no_pip_cache(image: Image) -> Found:
    """pip keeps no cache in a layer, and what it installs is named by the lock or lies in the context."""
    for stage in image.dockerfile.stages:
        quiet = any("PIP_NO_CACHE_DIR" in each.pairs for each in stage.all("ENV"))
        for each in stage.all("RUN"):
            for command in re.findall(r"pip\d?\s+install[^&;|]*", each.script):
                if not quiet and "--no-cache-dir" not in command and "type=cache" not in (each.flag("mount") or ""):
                    yield each.line, "pip install without --no-cache-dir"
                if not re.search(r"\s(-c|--constraint|-r|--requirement|--require-hashes|--no-deps)\b", command):
                    yield each.line, f"{command.strip()}: nothing fixes the versions"


def described(image: Image) -> Found:
    """HEALTHCHECK, and the labels by which an image's source is found."""
    labels = {key for each in image.shipped if each.name == "LABEL" for key in each.pairs}
    for missing in sorted(set(_LABELS) - labels):
        yield image.final.line, f"LABEL {missing} is missing"
    if not any(each.name == "HEALTHCHECK" and each.value != "NONE" for each in image.shipped):
        yield image.final.line, "HEALTHCHECK is missing"


def exec_form(image: Image) -> Found:
    """CMD, ENTRYPOINT and HEALTHCHECK as JSON arrays: signals reach the program, not a shell."""
    for each in _everywhere(image, "CMD", "ENTRYPOINT"):
        if each.exec_form is None:
            yield each.line, f"{each.name} {each.value} is no JSON array"
    for each in _everywhere(image, "HEALTHCHECK"):
        probe = re.sub(r"^CMD\s+", "", each.value)
        if each.value != "NONE" and Instruction("CMD", probe, each.line).exec_form is None:
            yield each.line, "HEALTHCHECK CMD is no JSON array"


def absolute_folders(image: Image) -> Found:
    """WORKDIR is absolute: it does not depend on the base."""
    for each in _everywhere(image, "WORKDIR"):
        if not each.value.startswith("/"):
            yield each.line, f"WORKDIR {each.value} is relative"


def for_kuberay(image: Image) -> Found:
    """bash, which runs what KubeRay writes, and wget, with which its probes ask older Rays, are installed by name."""
    packages = {package for each in image.shipped for package in _packages(each)}
    for missing in [name for name in _KUBERAY_NEEDS if name not in packages]:
        yield image.final.line, f"{missing} is not installed: KubeRay needs it"


def small_context(image: Image) -> Found:
    """The context is small, and has no history, environments, results or tests in it."""
    size = sum(image.files.values())
    if size > _LARGEST_CONTEXT:
        yield 1, f"the context has {size:,} bytes, more than {_LARGEST_CONTEXT:,}: see .dockerignore"
    for folder in (".git", ".venv", "runs", "tests"):
        if any(name.startswith(f"{folder}/") for name in image.files):
            yield 1, f"{folder}/ is in the context: see .dockerignore"


RULES: tuple[Callable[[Image], Found], ...] = (
    pinned_base,
    not_root,
    no_add,
    apt,
    no_secrets,
    copy_from,
    copied_exists,
    no_compiler,
    no_pip_cache,
    described,
    exec_form,
    absolute_folders,
    for_kuberay,
    small_context,
)


def check(text: str, files: dict[str, int]) -> list[Problem]:
    """All problems of a Dockerfile, by line."""
    image = Image(parse(text), files)
    found = [Problem(line, rule.__name__, message) for rule in RULES for line, message in rule(image)]
    return sorted(found, key=lambda problem: problem.line)


def _everywhere(image: Image, *names: str) -> Iterator[Instruction]:
    for stage in image.dockerfile.stages:
        yield from (each for each in stage.instructions if each.name in names)


def _unpinned(name: str) -> str | None:
    """Why this image's name does not say which image; None where it does."""
    if "@sha256:" in name or name == "scratch":
        return None
    tag = name.rsplit("/", 1)[-1].partition(":")[2]
    if not tag:
        return f"FROM {name or '(nothing: its ARG has no default)'} has no tag"
    return f"FROM {name} moves" if tag == "latest" else None


def _packages(run: Instruction) -> list[str]:
    """What a RUN installs by apt-get."""
    if run.name != "RUN":
        return []
    commands = re.findall(r"apt-get\s[^&;|\n]*?install\s([^&;|\n]*)", run.script)
    return [word.partition("=")[0] for command in commands for word in command.split() if not word.startswith("-")]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--file", type=Path, default=_ROOT / "Dockerfile", help="the Dockerfile; its folder is the context"
    )
    parser.add_argument("--install", action="store_true", help="run the build stage's commands in a clean folder")
    options = parser.parse_args(arguments)
    text, root = options.file.read_text(), options.file.resolve().parent
    files = {name: (root / name).lstat().st_size for name in context_files(root)}
    problems = check(text, files)
    for problem in problems:
        print(f"{options.file.name}:{problem.line}: {problem.message} [{problem.rule}]")
    size = f"{len(files)} files, {sum(files.values()):,} bytes"
    print(f"{len(RULES)} rules, {len(problems)} problems; the context is {size}")
    if problems:
        return 1
    if options.install:
        from image_install import install  # not above: the fast part does without

        return install(parse(text), root)
    return 0


if __name__ == "__main__":
    sys.exit(main())
