"""`values.schema.json` refuses what is wrong before anything is installed, and says where."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from chart_rendering import CHART, Object, merged, render, values
from helm_python import Chart, HelmError

WRONG: dict[str, tuple[str, Object, str]] = {
    "an Ingress before an image that is open to all": (
        "ingress-tls",
        {"webapp": {"url": "http://localhost:3000"}},
        "/webapp/url",
    ),
    "an Ingress without TLS": ("ingress-tls", {"ingress": {"tlsSecret": ""}}, "/ingress/tlsSecret"),
    "an Ingress for a site on plain http": (
        "ingress-tls",
        {"webapp": {"url": "http://neuronpedia.example.org"}},
        "/webapp/url",
    ),
    "graphs that no browser reaches": ("ingress-tls", {"ingress": {"s3Host": ""}}, "/ingress/s3Host"),
    "an empty password": ("minimal", {"secrets": {"postgres": {"password": ""}}}, "/secrets/postgres/password"),
    "a password that a URL reads otherwise": (
        "minimal",
        {"secrets": {"postgres": {"password": "p@ssword/with:colons"}}},
        "/secrets/postgres/password",
    ),
    "no password at all": ("minimal", {"secrets": {"generate": False}}, "/secrets/postgres"),
    "a short key": ("minimal", {"secrets": {"webapp": {"apiKey": "short"}}}, "/secrets/webapp/apiKey"),
    "an unknown key": ("minimal", {"postgress": {"enabled": True}}, "postgress"),
    "an unknown key further in": ("minimal", {"webapp": {"replicaCount": 2}}, "/webapp"),
    "no image": ("minimal", {"webapp": {"image": {"repository": ""}}}, "/webapp/image/repository"),
    "an image that moves": ("minimal", {"webapp": {"image": {"tag": "latest"}}}, "/webapp/image/tag"),
    "an image without a version": ("minimal", {"webapp": {"image": {"tag": ""}}}, "/webapp/image"),
    "too little memory for an import": (
        "minimal",
        {"postgres": {"resources": {"limits": {"memory": "2Gi"}}}},
        "/postgres/resources/limits/memory",
    ),
    "an external Postgres without a host": (
        "external-postgres",
        {"postgres": {"external": {"host": ""}}},
        "/postgres/external/host",
    ),
    "an external S3 without an endpoint": (
        "external-s3",
        {"s3": {"external": {"endpoint": ""}}},
        "/s3/external/endpoint",
    ),
    "AWS, where the buckets' names are taken": (
        "external-s3",
        {"s3": {"external": {"endpoint": "https://s3.us-east-1.amazonaws.com"}}},
        "/s3/external/endpoint",
    ),
    "artifacts in a bucket that anyone may read": (
        "minimal",
        {"s3": {"artifactsBucket": "neuronpedia-datasets"}},
        "/s3/artifactsBucket",
    ),
    "a backup that goes nowhere": (
        "minimal",
        {"postgres": {"backup": {"target": "s3"}}},
        "/postgres/backup/destination",
    ),
    "a secret among plain variables": (
        "minimal",
        {"webapp": {"env": {"OPENAI_API_KEY": "sk-1"}}},
        "/webapp/env/OPENAI_API_KEY",
    ),
    "a switch that the build has folded away": (
        "minimal",
        {"webapp": {"public": {"ENABLE_SIGNIN": "true"}}},
        "/webapp/public/ENABLE_SIGNIN",
    ),
    "a server without an image": ("minimal", {"servers": {"graph": {"enabled": True}}}, "/servers/graph/image"),
    "a graph server without its token": (
        "gpu",
        {"secrets": {"huggingFace": {"existingSecret": ""}}},
        "/secrets/huggingFace/existingSecret",
    ),
    "a number as text": ("minimal", {"webapp": {"replicas": "two"}}, "/webapp/replicas"),
    "no volume to speak of": ("minimal", {"postgres": {"volume": {"size": "lots"}}}, "/postgres/volume/size"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_values_are_refused_with_their_path(name: str) -> None:
    base, over, path = WRONG[name]
    with pytest.raises(HelmError) as refused:
        render(merged(values(base), over))
    assert path in str(refused.value)


def test_there_are_fifteen_and_more() -> None:
    assert len(WRONG) >= 15


def test_the_defaults_alone_are_refused_for_the_image_and_the_secrets() -> None:
    with pytest.raises(HelmError) as refused:
        render({})
    assert "/webapp/image" in str(refused.value) and "/secrets/" in str(refused.value)


def test_the_localhost_url_is_no_error_without_an_ingress() -> None:
    found = render(merged(values("minimal"), {"webapp": {"url": "http://localhost:3000"}}))
    assert not found.kind("Ingress")


def test_every_object_of_the_schema_is_closed_or_a_map_of_texts() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    open_ones = [path for path, part in _objects(schema, "") if part.get("additionalProperties", True) is True]
    assert open_ones == ["/properties/global"], "Helm itself adds `global`"


def test_every_default_is_in_the_schema() -> None:
    """The defaults with what they leave open: whatever values.yaml offers, the schema knows."""
    with Chart.load(CHART) as chart:
        chart.validate_schema(values("minimal"))
        assert set(chart.values) <= set(json.loads((CHART / "values.schema.json").read_text())["properties"])


def _objects(part: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Every schema that declares an object with a type; conditions say more about the same ones."""
    if isinstance(part, dict):
        if part.get("type") == "object":
            yield path, part
        for key, value in part.items():
            yield from _objects(value, f"{path}/{key}")
    elif isinstance(part, list):
        for number, value in enumerate(part):
            yield from _objects(value, f"{path}/{number}")
