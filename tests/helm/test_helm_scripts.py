"""The chart's scripts, run: identities and buckets against a real SeaweedFS, the substitution on built pages."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import botocore.session
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError
from chart_rendering import CHART, environment, rendered

FILES = CHART / "files"
KEYS = {who: (f"{who}KEY", f"{who.lower()}-secret/0001") for who in ("ADMIN", "WEBAPP", "WORKER")}
ARTIFACTS = "interp-artifacts"
GRPC_OFFSET = 10000


@pytest.mark.parametrize("script", sorted(FILES.glob("*.sh")), ids=lambda path: path.name)
def test_scripts_are_posix_shell(script: Path) -> None:
    subprocess.run(["sh", "-n", script], check=True)
    assert "set -eu" in script.read_text()


def _identities(target: Path, **changed: str) -> subprocess.CompletedProcess[str]:
    keys = {f"{who}_KEY": key for who, (key, _) in KEYS.items()} | {f"{who}_SECRET": s for who, (_, s) in KEYS.items()}
    given = {"PATH": os.environ["PATH"], "TARGET": str(target), "ARTIFACTS_BUCKET": ARTIFACTS, **keys, **changed}
    return subprocess.run(["sh", FILES / "s3-identities.sh"], env=given, text=True, capture_output=True)


def test_identities_are_json_that_nobody_else_reads(tmp_path: Path) -> None:
    assert _identities(tmp_path / "s3.json").returncode == 0
    found = {one["name"]: one for one in json.loads((tmp_path / "s3.json").read_text())["identities"]}
    assert found.keys() == {"admin", "webapp", "worker", "anonymous"}
    assert found["worker"]["credentials"] == [{"accessKey": KEYS["WORKER"][0], "secretKey": KEYS["WORKER"][1]}]
    assert "credentials" not in found["anonymous"]
    assert stat.S_IMODE((tmp_path / "s3.json").stat().st_mode) == 0o600


@pytest.mark.parametrize("secret", ["", 'with"quote', "with\nline", "with space"])
def test_a_key_that_would_break_out_is_refused(tmp_path: Path, secret: str) -> None:
    refused = _identities(tmp_path / "s3.json", WORKER_SECRET=secret)
    assert refused.returncode == 1 and "letters, digits" in refused.stderr
    assert not (tmp_path / "s3.json").exists()


@dataclass(frozen=True)
class Seaweed:
    port: int
    folder: Path

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, who: str) -> Any:
        key, secret = KEYS[who]
        return botocore.session.get_session().create_client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=key,
            aws_secret_access_key=secret,
            config=Config(s3={"addressing_style": "path"}),
        )

    def anonymous(self, path: str, *, host: str | None = None, method: str = "GET", origin: str = "") -> int:
        headers = {"Host": host} if host else {}
        headers |= {"Origin": origin} if origin else {}
        data = b"x" if method == "PUT" else None
        request = urllib.request.Request(f"{self.endpoint}{path}", data=data, headers=headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code


@pytest.fixture(scope="module")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seaweed]:
    """As the chart starts it: its own arguments, with ports, folders and the address of this test."""
    folder = tmp_path_factory.mktemp("seaweed")
    assert _identities(folder / "s3.json").returncode == 0
    (container,) = rendered("minimal").pod("s3").spec["containers"]
    ports = _free_ports(5)
    here = {
        "-dir=/data": f"-dir={folder / 'data'}",
        "-ip.bind=0.0.0.0": "-ip.bind=127.0.0.1",
        "-s3.port=8333": f"-s3.port={ports[0]}",
        "-s3.config=/identities/s3.json": f"-s3.config={folder / 's3.json'}",
        "-metricsPort=9327": f"-metricsPort={ports[4]}",
    }
    assert here.keys() <= set(container["args"])
    arguments = [here.get(one, one) for one in container["args"]]
    arguments += [f"-{part}.port={port}" for part, port in zip(("master", "filer", "volume"), ports[1:], strict=False)]
    (folder / "data").mkdir()
    command = Path(sys.executable).with_name(container["command"][0])
    with (folder / "weed.log").open("wb") as log:
        process = subprocess.Popen([command, *arguments], cwd=folder, stdout=log, stderr=subprocess.STDOUT)
    try:
        found = Seaweed(ports[0], folder)
        deadline = time.monotonic() + 60
        while not _healthy(found):
            assert process.poll() is None and time.monotonic() < deadline, (folder / "weed.log").read_text()[-4000:]
            time.sleep(0.2)
        yield found
    finally:
        process.kill()
        process.wait(30)


@pytest.fixture(scope="module")
def buckets(seaweed: Seaweed) -> Seaweed:
    """The Job's script has run, twice: the second time it finds everything there."""
    assert _make_buckets(seaweed).returncode == 0
    marker = b'{"name": "mine"}'
    seaweed.client("ADMIN").put_object(Bucket="neuronpedia-datasets", Key="v1/config/eval_type.jsonl", Body=marker)
    again = _make_buckets(seaweed)
    assert again.returncode == 0, again.stderr
    kept = seaweed.client("ADMIN").get_object(Bucket="neuronpedia-datasets", Key="v1/config/eval_type.jsonl")
    assert kept["Body"].read() == marker, "what somebody has written stays"
    return seaweed


def _make_buckets(seaweed: Seaweed) -> subprocess.CompletedProcess[str]:
    scripts, commands = seaweed.folder / "scripts", seaweed.folder / "bin"
    for made in (scripts, commands):
        made.mkdir(exist_ok=True)
    for name, text in rendered("ingress-tls").one("ConfigMap", "interp-scripts")["data"].items():
        (scripts / name).write_text(text)
    aws = commands / "aws"
    aws.write_text(f'#!/bin/sh\nexec {sys.executable} {Path(__file__).with_name("aws_command.py")} "$@"\n')
    aws.chmod(0o755)
    (container,) = rendered("minimal").pod("buckets").spec["containers"]
    given = environment(container) | {
        "PATH": f"{commands}:{os.environ['PATH']}",
        "AWS_ENDPOINT_URL_S3": seaweed.endpoint,
        "AWS_ACCESS_KEY_ID": KEYS["ADMIN"][0],
        "AWS_SECRET_ACCESS_KEY": KEYS["ADMIN"][1],
    }
    script = scripts / "here.sh"
    text = (FILES / "buckets.sh").read_text()
    script.write_text(text.replace("/tmp/", f"{seaweed.folder}/").replace("file:///scripts", f"file://{scripts}"))
    return subprocess.run(["sh", script], env=given, text=True, capture_output=True, timeout=120)


def test_the_five_objects_that_an_import_needs_are_there_for_anyone(buckets: Seaweed) -> None:
    for name in ("model_type", "type", "score_model", "score_type"):
        assert buckets.anonymous(f"/neuronpedia-datasets/v1/config/explanation_{name}.jsonl") == 200
    assert buckets.anonymous("/neuronpedia-datasets/v1/config/eval_type.jsonl") == 200
    assert buckets.anonymous("/neuronpedia-datasets/?list-type=2&prefix=v1/") == 200


def test_nobody_reads_or_writes_what_is_not_open(buckets: Seaweed) -> None:
    buckets.client("WORKER").put_object(Bucket=ARTIFACTS, Key="trace/key/manifest.json", Body=b"{}")
    assert buckets.anonymous(f"/{ARTIFACTS}/trace/key/manifest.json") == 403
    assert buckets.anonymous(f"/{ARTIFACTS}/?list-type=2") == 403
    assert buckets.anonymous("/neuronpedia-attrib/?list-type=2") == 403
    for bucket in ("neuronpedia-attrib", "neuronpedia-datasets", ARTIFACTS):
        assert buckets.anonymous(f"/{bucket}/planted", method="PUT") == 403


def test_each_key_does_its_own_work_only(buckets: Seaweed) -> None:
    writes = {"WEBAPP": {"neuronpedia-attrib"}, "WORKER": {ARTIFACTS, "neuronpedia-datasets"}}
    for who, may in writes.items():
        for bucket in (ARTIFACTS, "neuronpedia-attrib", "neuronpedia-datasets"):
            if bucket in may:
                buckets.client(who).put_object(Bucket=bucket, Key=f"by-{who}", Body=b"x")
                continue
            with pytest.raises(ClientError, match="AccessDenied"):
                buckets.client(who).put_object(Bucket=bucket, Key=f"by-{who}", Body=b"x")
        with pytest.raises(ClientError, match="AccessDenied"):
            buckets.client(who).create_bucket(Bucket="another")
    with pytest.raises(ClientError, match="AccessDenied"):
        buckets.client("WEBAPP").list_objects_v2(Bucket=ARTIFACTS)


def test_the_bucket_may_stand_before_the_host(buckets: Seaweed) -> None:
    """As Neuronpedia's client asks; the domain is the one that the chart gives to pods."""
    buckets.client("WEBAPP").put_object(Bucket="neuronpedia-attrib", Key="user/graph.json", Body=b"{}")
    (webapp,) = rendered("minimal").pod("webapp").spec["containers"]
    domain = environment(webapp)["AWS_ENDPOINT_URL_S3"].removeprefix("http://").removesuffix(":8333")
    assert buckets.anonymous("/user/graph.json", host=f"neuronpedia-attrib.{domain}:{buckets.port}") == 200
    assert buckets.anonymous("/user/graph.json", host=f"neuronpedia-datasets.{domain}:{buckets.port}") in (403, 404)


def test_a_page_of_another_site_is_not_told_that_it_may(buckets: Seaweed) -> None:
    url = f"{buckets.endpoint}/neuronpedia-attrib/.interp-check"
    for origin, allowed in (("https://neuronpedia.example.org", True), ("https://elsewhere.example.org", False)):
        request = urllib.request.Request(url, headers={"Origin": origin})
        with urllib.request.urlopen(request, timeout=10) as answer:
            assert (answer.headers.get("Access-Control-Allow-Origin") == origin) is allowed


def test_a_bucket_of_artifacts_that_is_open_fails_the_job(buckets: Seaweed) -> None:
    admin = buckets.client("ADMIN")
    policies = rendered("minimal").one("ConfigMap", "interp-scripts")["data"]
    policy = policies["neuronpedia-datasets.policy.json"].replace("neuronpedia-datasets", ARTIFACTS)
    admin.put_bucket_policy(Bucket=ARTIFACTS, Policy=policy)
    try:
        failed = _make_buckets(buckets)
        assert failed.returncode == 1 and "must be private" in failed.stderr
    finally:
        admin.delete_bucket_policy(Bucket=ARTIFACTS)


@pytest.mark.parametrize("password", ["", "p@ss", "with/slash", "with:colon", "with space"])
def test_a_password_that_a_url_reads_otherwise_is_refused_before_it_is_used(password: str) -> None:
    given = {"PATH": os.environ["PATH"], "PGPASSWORD": password, "PGHOST": "nowhere", "PGPORT": "1"}
    script = FILES / "wait-for-postgres.sh"
    refused = subprocess.run(["sh", script], env=given, text=True, capture_output=True, timeout=10)
    assert refused.returncode == 1 and "part of a URL" in refused.stderr


def test_waiting_asks_for_this_release_and_ends(tmp_path: Path) -> None:
    """With a psql that answers as a database does in which the release is written after the second question."""
    psql = tmp_path / "psql"
    psql.write_text(f'#!/bin/sh\necho "$*" >>{tmp_path}/asked\n[ "$(wc -l <{tmp_path}/asked)" -lt 3 ] || echo 1\n')
    psql.chmod(0o755)
    given = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "PGPASSWORD": "a-password",
        "PGHOST": "db",
        "PGPORT": "5432",
        "PAUSE": "0",
    }
    script = (FILES / "wait-for-postgres.sh").read_text().replace("/tmp/", f"{tmp_path}/")

    def wait(**more: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "asked").unlink(missing_ok=True)
        return subprocess.run(["sh", "-c", script], env=given | more, text=True, capture_output=True, timeout=30)

    assert wait(WANTED_RELEASE="0123456789").returncode == 0
    asked = (tmp_path / "asked").read_text().splitlines()
    assert len(asked) == 3 and all("interp.release WHERE hash = '0123456789'" in one for one in asked)
    gave_up = wait(TRIES="2")
    assert gave_up.returncode == 1 and "gave up waiting for db:5432" in gave_up.stderr


node = pytest.mark.skipif(
    shutil.which("node") is None, reason="the substitution runs in the web app's image, with node"
)


def _substitute(folder: Path, page: str, **public: str) -> subprocess.CompletedProcess[str]:
    built = folder / "app" / ".next" / "server"
    built.mkdir(parents=True)
    (built / "page.js").write_text(page)
    (built / "image.png").write_bytes(b"\x89PNG __NEXT_PUBLIC_URL__ \xff")
    (folder / "built").mkdir()
    given = {"PATH": os.environ["PATH"], "SOURCE": str(folder / "app/.next"), "TARGET": str(folder / "built"), **public}
    return subprocess.run(["node", FILES / "substitute.mjs"], env=given, text=True, capture_output=True)


@node
def test_placeholders_become_values_that_end_no_string(tmp_path: Path) -> None:
    page = 'x="__NEXT_PUBLIC_URL__";y="__NEXT_PUBLIC_URL__/api";z="__NEXT_PUBLIC_DEFAULT_MODELID__"'
    model = 'quote " and \\ and $& and </script>'
    done = _substitute(
        tmp_path, page, NEXT_PUBLIC_URL="https://np.example.org", NEXT_PUBLIC_DEFAULT_MODELID=model, OTHER="x"
    )
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "built/server/page.js").read_text()
    print_it = subprocess.run(["node", "-e", f"{text};process.stdout.write(z + y)"], text=True, capture_output=True)
    assert print_it.stdout == f"{model}https://np.example.org/api"
    assert "NEXT_PUBLIC_URL: 2 places" in done.stdout
    assert (tmp_path / "built/server/image.png").read_bytes() == b"\x89PNG __NEXT_PUBLIC_URL__ \xff"
    assert (tmp_path / "app/.next/server/page.js").read_text() == page, "the image stays as it is"


@node
def test_an_image_with_a_fixed_url_does_not_start(tmp_path: Path) -> None:
    refused = _substitute(tmp_path, 'x="http://localhost:3000"', NEXT_PUBLIC_URL="https://np.example.org")
    assert refused.returncode == 1 and "lets anyone import" in refused.stderr


def _healthy(seaweed: Seaweed) -> bool:
    try:
        seaweed.client("ADMIN").list_buckets()
        return True
    except (OSError, ClientError, botocore.exceptions.BotoCoreError):
        return False


def _free_ports(count: int) -> list[int]:
    """Free ports whose neighbours above, where SeaweedFS listens for gRPC, are free too; all held until chosen."""
    chosen: list[int] = []
    held: list[socket.socket] = []
    try:
        while len(chosen) < count:
            first, second = socket.socket(), socket.socket()
            held += [first, second]
            first.bind(("127.0.0.1", 0))
            port = first.getsockname()[1]
            if port + GRPC_OFFSET > 65535:
                continue
            try:
                second.bind(("127.0.0.1", port + GRPC_OFFSET))
            except OSError:
                continue
            chosen.append(port)
    finally:
        for one in held:
            one.close()
    return chosen
