"""Install, upgrade, upgrade again: what cannot be changed has another name, what must stay is kept."""

from __future__ import annotations

import base64

import pytest
from chart_rendering import NAMESPACE, VALUES, Object, Rendered, environment, merged, render, rendered, values
from helm_python import HelmError

GIVEN = {
    "secrets": {
        "generate": False,
        "postgres": {"password": "a-password-of-Postgres.1"},
        "webapp": {
            "nextauthSecret": "a-secret-of-sessions.1",
            "apiKey": "a-key-for-uploads-0001",
            "serverSecret": "a-secret-of-servers.1",
        },
        "s3Admin": {"accessKey": "ADMIN", "secretKey": "an-admin-secret/0001"},
        "s3Webapp": {"accessKey": "WEBAPP", "secretKey": "a-webapp-secret/0001"},
        "s3Worker": {"accessKey": "WORKER", "secretKey": "a-worker-secret/0001"},
    }
}


def _jobs(chart: Rendered) -> set[str]:
    return {one["metadata"]["name"] for one in chart.kind("Job")}


@pytest.mark.parametrize("name", VALUES)
def test_an_upgrade_makes_new_jobs_and_changes_nothing_else(name: str) -> None:
    first, second = render(values(name), revision=1), render(values(name), revision=2)
    assert not _jobs(first) & _jobs(second)
    assert all(len(one) <= 63 for one in _jobs(second))
    assert [_steady(one) for one in first.objects] == [_steady(one) for one in second.objects]


def test_the_same_revision_with_another_spec_has_another_name() -> None:
    """Whatever applies rendered manifests always says revision 1, and a Job's spec cannot be changed."""
    before = rendered("minimal")
    for change in (
        {"webapp": {"image": {"tag": "2026.9.1"}}},
        {"imagePullSecrets": ["registry"]},
        {"postgres": {"user": "another"}},
    ):
        after = render(merged(values("minimal"), change))
        specs = {one["metadata"]["name"]: one["spec"] for one in (*before.kind("Job"), *after.kind("Job"))}
        for chart in (before, after):
            for job in chart.kind("Job"):
                assert specs[job["metadata"]["name"]] == job["spec"]
        assert _jobs(before) != _jobs(after)


def test_jobs_are_no_hooks_and_the_web_app_waits_for_this_release() -> None:
    """A hook before would wait for a Postgres that is not there yet; one after, for a web app that waits for it."""
    chart = rendered("minimal")
    assert all("annotations" not in job["metadata"] for job in chart.kind("Job"))
    waiting, *_ = chart.pod("webapp").spec["initContainers"]
    seed = chart.pod("database").spec["containers"][0]
    assert environment(waiting)["WANTED_RELEASE"] == environment(seed)["WANTED_RELEASE"]
    names = [container["name"] for container in chart.pod("database").containers]
    assert names == ["wait-for-postgres", "migrate", "seed"]


def test_another_image_is_waited_for_anew_and_another_replica_count_is_not() -> None:
    def wanted(change: Object) -> str:
        chart = render(merged(values("minimal"), change))
        return environment(chart.pod("webapp").spec["initContainers"][0])["WANTED_RELEASE"]

    assert wanted({}) == wanted({"webapp": {"replicas": 3}})
    assert wanted({}) != wanted({"webapp": {"image": {"tag": "2026.9.1"}}})


def test_claims_of_stateful_sets_do_not_change_with_values_that_may() -> None:
    """volumeClaimTemplates, serviceName and selectors of a StatefulSet cannot be changed."""
    after = render(merged(values("minimal"), {"postgres": {"image": {"tag": "0.8.1-pg17"}}, "webapp": {"replicas": 2}}))
    for name in ("interp-postgres", "interp-s3"):
        old, new = (chart.one("StatefulSet", name)["spec"] for chart in (rendered("minimal"), after))
        for part in ("volumeClaimTemplates", "serviceName", "selector"):
            assert old[part] == new[part]
        for claim in new["volumeClaimTemplates"]:
            assert "helm.sh/chart" not in claim["metadata"]["labels"]


def test_made_secrets_are_random_and_outlive_the_release() -> None:
    made = render(values("minimal")).kind("Secret")
    texts = [base64.b64decode(text).decode() for one in made for text in one["data"].values()]
    assert len(texts) == 10 and len(set(texts)) == 10
    assert all(len(text) == 32 and text.isalnum() for text in texts)
    assert all(one["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep" for one in made)
    claim = rendered("minimal").one("PersistentVolumeClaim", "interp-backup")
    assert claim["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"


def test_given_secrets_are_used_as_they_are() -> None:
    chart = render(merged(values("minimal"), GIVEN))
    assert chart.text == render(merged(values("minimal"), GIVEN)).text, "nothing is random"
    (postgres,) = [one for one in chart.kind("Secret") if one["metadata"]["name"] == "interp-postgres"]
    assert base64.b64decode(postgres["data"]["password"]).decode() == "a-password-of-Postgres.1"
    others = [one for one in chart.objects if one["kind"] != "Secret"]
    for text in ("a-password-of", "a-secret-of", "a-key-for", "admin-secret", "webapp-secret", "worker-secret"):
        assert text not in str(others) and text not in chart.notes


def test_existing_secrets_are_not_made() -> None:
    assert not rendered("external-s3").kind("Secret")


def test_half_of_a_secret_is_refused_by_name() -> None:
    half = merged(GIVEN, {})
    half["secrets"]["webapp"] = {"nextauthSecret": "a-secret-of-sessions.1"}
    with pytest.raises(HelmError, match="/secrets/webapp"):
        render(merged(values("minimal"), half))


def test_other_releases_have_other_names() -> None:
    chart = render(merged(values("minimal"), {"fullnameOverride": "second"}))
    names = {one["metadata"]["name"] for one in chart.objects}
    fixed = {"interp-worker", "neuronpedia-datasets", "neuronpedia-attrib"}
    assert all(name.startswith("second") for name in names - fixed)
    assert NAMESPACE not in names


def _steady(one: Object) -> Object:
    """Without what is random, and without the names of Jobs."""
    if one["kind"] == "Secret":
        return one | {"data": sorted(one["data"])}
    if one["kind"] == "Job":
        return one | {"metadata": one["metadata"] | {"name": ""}}
    return one
