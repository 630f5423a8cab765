"""The traps of a Neuronpedia of one's own, each as the chart solves it."""

from __future__ import annotations

import json

import pytest
import yaml
from chart_rendering import CHART, NAMESPACE, Object, environment, merged, render, rendered, values

from interp.cluster.profile import Profile

BYTES = {"Mi": 2**20, "Gi": 2**30}


def _webapp(name: str) -> Object:
    (container,) = rendered(name).pod("webapp").spec["containers"]
    return container


def _variable(container: Object, name: str) -> Object:
    (found,) = [one for one in container["env"] if one["name"] == name]
    return found


def _bytes(text: str) -> int:
    return int(text[:-2]) * BYTES[text[-2:]]


def test_no_image_is_made_up() -> None:
    defaults = yaml.safe_load((CHART / "values.yaml").read_text())
    images = [defaults["webapp"]["image"], *(server["image"] for server in defaults["servers"].values())]
    assert all(image["repository"] == "" and image["tag"] == "" for image in images)


def test_pages_are_substituted_before_the_server_starts_and_mounted_over_the_image() -> None:
    pod = rendered("ingress-tls").pod("webapp")
    substitute = pod.spec["initContainers"][-1]
    assert substitute["command"] == ["node", "/scripts/substitute.mjs"]
    given = environment(substitute)
    assert given["NEXT_PUBLIC_URL"] == "https://neuronpedia.example.org"
    (webapp,) = pod.spec["containers"]
    mounts = {mount["name"]: mount["mountPath"] for mount in webapp["volumeMounts"]}
    assert mounts["built"] == given["SOURCE"] == "/app/.next"
    served = environment(webapp)
    public = {key: value for key, value in given.items() if key.startswith("NEXT_PUBLIC_")}
    assert public.items() <= served.items(), "what the server reads is what the pages say"


def test_the_default_url_does_not_open_the_import() -> None:
    assert environment(_webapp("minimal"))["NEXT_PUBLIC_URL"] == "http://127.0.0.1:3000"


@pytest.mark.parametrize("name", ["minimal", "external-postgres"])
def test_the_password_of_postgres_is_put_in_by_the_kubelet(name: str) -> None:
    webapp = _webapp(name)
    order = [one["name"] for one in webapp["env"]]
    assert order.index("POSTGRES_PASSWORD") < order.index("POSTGRES_PRISMA_URL"), "else $(...) stays as it is"
    assert "value" not in _variable(webapp, "POSTGRES_PASSWORD")
    for url in ("POSTGRES_PRISMA_URL", "POSTGRES_URL_NON_POOLING"):
        assert ":$(POSTGRES_PASSWORD)@" in environment(webapp)[url]


def test_an_external_postgres_is_reached_with_its_certificate_checked() -> None:
    """Prisma takes `verify-full`, which it does not know, for `prefer`; libpq is told of the system's roots."""
    url = environment(_webapp("external-postgres"))["POSTGRES_PRISMA_URL"]
    assert "@postgres.example.org:6432/np?sslmode=require&sslaccept=strict" in url
    seed = environment(rendered("external-postgres").pod("database").spec["containers"][0])
    assert seed["PGSSLMODE"] == "verify-full" and seed["PGSSLROOTCERT"] == "system"


def test_postgres_has_room_for_an_import() -> None:
    (postgres,) = rendered("minimal").pod("postgres").spec["containers"]
    assert _bytes(postgres["resources"]["limits"]["memory"]) >= 4 * 2**30
    volumes = {volume["name"]: volume for volume in rendered("minimal").pod("postgres").spec["volumes"]}
    assert volumes["shm"]["emptyDir"]["medium"] == "Memory" and _bytes(volumes["shm"]["emptyDir"]["sizeLimit"]) >= 2**28
    assert {"name": "shm", "mountPath": "/dev/shm"} in postgres["volumeMounts"]
    (claim,) = rendered("minimal").one("StatefulSet", "interp-postgres")["spec"]["volumeClaimTemplates"]
    assert _bytes(claim["spec"]["resources"]["requests"]["storage"]) >= 50 * 2**30


@pytest.mark.parametrize("name", ["minimal", "ingress-tls", "external-s3"])
def test_pods_and_browsers_use_one_name_for_the_bucket_of_graphs(name: str) -> None:
    """Neuronpedia's client puts the bucket before the endpoint's host; that name leads to S3, and S3 knows it."""
    endpoint = environment(_webapp(name))["AWS_ENDPOINT_URL_S3"]
    chart = rendered(name)
    if name == "minimal":
        assert endpoint == f"http://{NAMESPACE}.svc:8333"
        for bucket in ("neuronpedia-attrib", "neuronpedia-datasets"):
            assert chart.one("Service", bucket)["spec"]["selector"]["app.kubernetes.io/component"] == "s3"
        assert f"-s3.domainName={NAMESPACE}.svc" in _weed(name)
    elif name == "ingress-tls":
        assert endpoint == "https://s3.example.org"
        ingress = chart.one("Ingress", "interp-s3")["spec"]
        hosts = {"s3.example.org", "neuronpedia-attrib.s3.example.org", "neuronpedia-datasets.s3.example.org"}
        assert {rule["host"] for rule in ingress["rules"]} == hosts
        assert set(ingress["tls"][0]["hosts"]) == hosts, "the certificate is for all of them"
        assert f"-s3.domainName=s3.example.org,{NAMESPACE}.svc" in _weed(name)
    else:
        assert endpoint == "https://s3.example.org:9000"


def test_uploads_carry_no_checksum_of_an_empty_body() -> None:
    assert environment(_webapp("minimal"))["AWS_REQUEST_CHECKSUM_CALCULATION"] == "WHEN_REQUIRED"


def test_browsers_of_the_site_may_read_and_upload_graphs() -> None:
    (scripts,) = rendered("ingress-tls").kind("ConfigMap")
    (rule,) = json.loads(scripts["data"]["neuronpedia-attrib.cors.json"])["CORSRules"]
    assert rule["AllowedOrigins"] == ["https://neuronpedia.example.org"]
    assert {"GET", "PUT"} <= set(rule["AllowedMethods"])


def test_anonymous_reading_is_of_two_buckets_and_of_nothing_else() -> None:
    data = rendered("minimal").one("ConfigMap", "interp-scripts")["data"]
    policies = {name: json.loads(text) for name, text in data.items() if name.endswith(".policy.json")}
    actions = {name.split(".")[0]: set(one["Statement"][0]["Action"]) for name, one in policies.items()}
    assert actions == {
        "neuronpedia-datasets": {"s3:GetObject", "s3:ListBucket"},
        "neuronpedia-attrib": {"s3:GetObject"},
    }


def test_users_are_the_ones_that_the_seed_makes() -> None:
    served = environment(_webapp("minimal"))
    seeded = environment(rendered("minimal").pod("database").spec["containers"][0])
    for name in ("DEFAULT_CREATOR_USER_ID", "INFERENCE_ACTIVATION_USER_ID"):
        assert served[name] == seeded[name]
    assert served["PUBLIC_ACTIVATIONS_USER_IDS"] == served["DEFAULT_CREATOR_USER_ID"]
    assert served["INFERENCE_ACTIVATION_USER_ID"] not in served["PUBLIC_ACTIVATIONS_USER_IDS"]


def test_servers_are_found_by_the_variables_that_name_them() -> None:
    served = environment(_webapp("gpu"))
    assert served["USE_LOCALHOST_INFERENCE"] == served["USE_LOCALHOST_GRAPH"] == "true"
    assert served["LOCALHOST_INFERENCE_HOST_OVERRIDE"] == "http://interp-inference:5002"
    assert served["LOCALHOST_GRAPH_HOST_OVERRIDE"] == "http://interp-graph:5004"
    assert served["AUTOINTERP_SERVER"] == "http://interp-autointerp:5003" and "USE_LOCALHOST_AUTOINTERP" not in served
    for server in ("inference", "autointerp", "graph"):
        (container,) = rendered("gpu").pod(server).spec["containers"]
        mine = _variable(_webapp("gpu"), f"{server.upper()}_SERVER_SECRET")["valueFrom"]
        assert _variable(container, "SECRET")["valueFrom"] == mine, "they share one secret"
    (graph,) = rendered("gpu").pod("graph").spec["containers"]
    assert graph["resources"]["limits"]["nvidia.com/gpu"] == graph["resources"]["requests"]["nvidia.com/gpu"] == 1


def test_backups_go_to_a_volume_or_to_s3() -> None:
    (dump,) = rendered("minimal").pod("backup").containers
    volumes = {volume["name"]: volume for volume in rendered("minimal").pod("backup").spec["volumes"]}
    assert volumes["backup"]["persistentVolumeClaim"]["claimName"] == "interp-backup"
    assert environment(dump)["KEEP"] == "7"
    names = [container["name"] for container in rendered("external-s3").pod("backup").containers]
    assert names == ["dump", "upload"]
    assert not rendered("external-s3").kind("PersistentVolumeClaim")


@pytest.mark.parametrize("name", ["minimal", "external-s3", "ingress-tls", "runs-only"])
def test_the_notes_give_a_profile_that_holds(name: str) -> None:
    """What they say to write is read by the model of profiles, and names what this release has."""
    lines = rendered(name).notes.split("and in the file that it names:")[1].split("then: interp profile check")[0]
    profile = Profile.model_validate(
        {
            "metadata": {"name": "interp"},
            "image": "registry.example.org/interp:0.1.0",
            "workers": [{"name": "cpu", "cpus": 4, "memory": 8_000_000_000, "max": 1}],
            **yaml.safe_load(lines),
        }
    )
    chart = rendered(name)
    assert profile.namespace == NAMESPACE
    assert chart.one("ServiceAccount", profile.service_account)
    endpoint = profile.env["AWS_ENDPOINT_URL"]
    assert endpoint == (
        "https://s3.example.org:9000" if name == "external-s3" else f"http://interp-s3.{NAMESPACE}:8333"
    )
    made = {one["metadata"]["name"] for one in chart.kind("Secret")}
    assert set(profile.secrets) <= made | {"interp-s3"}


def test_the_notes_do_not_show_a_port_forward_where_there_is_an_ingress() -> None:
    assert "https://neuronpedia.example.org" in rendered("ingress-tls").notes
    assert "service/interp-webapp 3000" not in rendered("ingress-tls").notes
    assert "neuronpedia-attrib.studies.svc" in rendered("minimal").notes


def test_helm_test_asks_all_three() -> None:
    for name, parts in (("minimal", {"webapp", "postgres", "s3"}), ("runs-only", {"s3"})):
        tests = rendered(name).kind("Pod")
        assert {one["metadata"]["name"].removeprefix("interp-test-") for one in tests} == parts
        assert all(one["metadata"]["annotations"]["helm.sh/hook"] == "test" for one in tests)


def test_without_a_web_app_there_is_no_postgres_either() -> None:
    chart = render(merged(values("minimal"), {"webapp": {"enabled": False}}))
    assert not chart.kind("Deployment")
    assert [one["metadata"]["name"] for one in chart.kind("StatefulSet")] == ["interp-s3"]


def _weed(name: str) -> list[str]:
    (container,) = rendered(name).pod("s3").spec["containers"]
    return container["args"]
