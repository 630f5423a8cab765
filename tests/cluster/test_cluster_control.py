"""Submit, resume, cancel: one run whatever is lost, refused or done twice, and nothing half done."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from kube_api import KubeApi
from small_run import Small

from interp.cluster import control
from interp.cluster.client import Cluster
from interp.cluster.diff import difference
from interp.cluster.look import glance, look
from interp.errors import ArtifactMissing, ClusterError, SpecError, StoreError

pytestmark = pytest.mark.s3


@pytest.fixture
def small(kube: KubeApi, s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Small:
    monkeypatch.setenv("INTERP_CACHE_DIR", str(tmp_path / "cache"))
    return Small.make(kube, tmp_path, s3_url)


def uid(small: Small) -> str | None:
    found = small.kube.get("RayJob", small.run)
    return None if found is None else str(found["metadata"]["uid"])


def token_of_job(small: Small) -> str:
    found = small.kube.get("RayJob", small.run)
    assert found is not None
    return str(found["metadata"]["annotations"]["interp.dev/token"])


def phase(small: Small) -> str:
    return look(small.run, small.cluster(), small.store.url).phase


def test_submitting_twice_is_one_run(small: Small) -> None:
    done = small.submit()
    assert done.outcome == "submitted" and done.run == small.run and done.run.startswith("small-one-")
    first = uid(small)
    record, plan = small.run_folder.json("run.json"), small.run_folder.text("plan.json")
    assert record is not None and record["study"] == "small-one" and record["profile"]["image"].endswith("interp:1")
    assert control.plan_of(small.run_folder) == small.plan()
    assert control.profile_of(record) == small.profile
    for deployment, outcome in (("", ""), ("Initializing", ""), ("Running", "RUNNING"), ("Retrying", "FAILED")):
        small.kuberay_says(deployment, outcome)
        assert small.submit().outcome == "already running"
    assert uid(small) == first and small.run_folder.json("run.json") == record
    assert small.run_folder.text("plan.json") == plan


def test_two_submits_at_once_make_one_rayjob(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    # Both have looked, and both write the folder, before either makes the RayJob.
    both, create = threading.Barrier(2, timeout=20), Cluster.create_job

    def together(self: Cluster, manifest: dict[str, Any]) -> dict[str, Any]:
        both.wait()
        return create(self, manifest)

    monkeypatch.setattr(Cluster, "create_job", together)
    with ThreadPoolExecutor(2) as pool:
        outcomes = [call.result() for call in [pool.submit(small.submit) for _ in range(2)]]
    assert sorted(done.outcome for done in outcomes) == ["already running", "submitted"]
    assert len(small.kube.objects("RayJob")) == 1
    assert len({done.run for done in outcomes}) == 1
    assert control.plan_of(small.run_folder) == small.plan()


def test_who_made_the_rayjob_has_the_say(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    create = Cluster.create_job
    theirs = {"run": small.run, "token": "theirs", "stages": [], "profile": {}}

    def meanwhile(self: Cluster, manifest: dict[str, Any]) -> dict[str, Any]:
        made = create(self, manifest)
        small.run_folder.write_json("run.json", theirs)
        return made

    monkeypatch.setattr(Cluster, "create_job", meanwhile)
    assert small.submit().outcome == "submitted"
    record = small.run_folder.json("run.json")
    assert record is not None and record["token"] == token_of_job(small) != "theirs"
    assert record["profile"]["image"] == small.profile.image and record["context"] == "double"


@pytest.mark.parametrize("order", ["at once", "the second writes when the first is done"])
def test_two_resumes_at_once_leave_one_rayjob_and_its_record(
    small: Small, monkeypatch: pytest.MonkeyPatch, order: str
) -> None:
    small.submit()
    small.kuberay_says("Failed", "FAILED", "AppFailed")
    cluster, create, first = small.cluster(), Cluster.create_job, uid(small)
    images = [f"registry.example/interp:{number}" for number in (2, 3)]
    both, done = threading.Barrier(2, timeout=20), threading.Event()

    def together(self: Cluster, manifest: dict[str, Any]) -> dict[str, Any]:
        # Both have removed the old RayJob and written the folder.
        both.wait()
        if order != "at once" and images[1] in str(manifest):
            assert done.wait(20)
        return create(self, manifest)

    def resume(image: str) -> str:
        profile = small.profile.model_copy(update={"image": image})
        outcome = control.resume(small.run, cluster, small.store, profile=profile).outcome
        done.set()
        return outcome

    monkeypatch.setattr(Cluster, "create_job", together)
    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(resume, images))
    assert sorted(outcomes) == ["already running", "resumed"]
    won = images[outcomes.index("resumed")]
    job, record = small.kube.get("RayJob", small.run), small.run_folder.json("run.json")
    assert job is not None and record is not None and uid(small) != first
    assert won in str(job["spec"]) and record["profile"]["image"] == won and record["token"] == token_of_job(small)


def test_a_rayjob_that_somebody_made_meanwhile_is_not_removed(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    small.submit()
    small.kuberay_says("Failed", "FAILED", "AppFailed")
    cluster, delete, second = small.cluster(), Cluster.delete_job, []

    def meanwhile(self: Cluster, name: str, **of: Any) -> bool:
        if not second:
            second.append("...")
            control.resume(small.run, small.cluster(), small.store)
            second[0] = uid(small)
        return delete(self, name, **of)

    monkeypatch.setattr(Cluster, "delete_job", meanwhile)
    assert control.resume(small.run, cluster, small.store).outcome == "already running"
    record = small.run_folder.json("run.json")
    assert uid(small) == second[0] and record is not None and record["token"] == token_of_job(small)


def test_an_answer_that_is_lost(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    create = Cluster.create_job

    def lossy(self: Cluster, manifest: dict[str, Any]) -> dict[str, Any]:
        small.kube.lose_next(1)
        return create(self, manifest)

    monkeypatch.setattr(Cluster, "create_job", lossy)
    assert small.submit().outcome == "submitted"
    assert len(small.kube.objects("RayJob")) == 1

    def unanswered(self: Cluster, manifest: dict[str, Any]) -> dict[str, Any]:
        create(self, manifest)
        raise ClusterError("no answer")

    monkeypatch.setattr(Cluster, "create_job", unanswered)
    small.write_study(name="another")
    assert small.submit().outcome == "submitted"
    assert len(small.kube.objects("RayJob")) == 2


@pytest.mark.parametrize("status", [403, 422, 500])
def test_a_refused_create_leaves_a_folder_that_the_next_submit_uses(
    small: Small, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    create = Cluster.create_job

    def refused(self: Cluster, manifest: dict[str, Any]) -> dict[str, Any]:
        small.kube.fail_next(5 if status == 500 else 1, status)
        return create(self, manifest)

    with monkeypatch.context() as patch:
        patch.setattr(Cluster, "create_job", refused)
        with pytest.raises(ClusterError) as failure:
            small.submit()
    assert "submit it again" in str(failure.value) and "could not be made" in failure.value.what
    assert small.kube.objects("RayJob") == [] and phase(small) == "unsubmitted"
    assert small.submit().outcome == "submitted"
    record = small.run_folder.json("run.json")
    assert record is not None and record["token"] == token_of_job(small)


def test_an_api_that_is_away_before_anything_is_written(small: Small) -> None:
    cluster = small.cluster(timeout=1)
    small.kube.stop()
    with pytest.raises(ClusterError) as failure:
        control.submit(small.plan(), small.profile, cluster, small.store)
    assert failure.value.remedy
    assert not small.store.backend.objects("")
    small.kube.start()


def test_a_store_that_refuses_leaves_no_rayjob(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, store = small.plan(), small.store

    def full(*_: object) -> None:
        raise StoreError("no space")

    monkeypatch.setattr(type(store.backend), "write", full)
    with pytest.raises(StoreError, match="no space"):
        control.submit(plan, small.profile, small.cluster(), store)
    assert small.kube.objects("RayJob") == []


@pytest.mark.parametrize(
    ("deployment", "outcome", "reason"), [("Failed", "FAILED", "AppFailed"), ("Complete", "STOPPED", "")]
)
def test_a_run_that_failed_is_not_submitted_again_but_resumed(
    small: Small, deployment: str, outcome: str, reason: str
) -> None:
    small.submit()
    first, token = uid(small), (small.run_folder.json("run.json") or {})["token"]
    small.kuberay_says(deployment, outcome, reason)
    small.driver_says("failed", {"kind": "RuntimeError", "message": "boom"})
    done = small.submit()
    assert (done.outcome, done.phase, done.note) == ("ended", "failed", "") and uid(small) == first

    small.make_artifacts("corpus")
    assert control.resume(small.run, small.cluster(), small.store).outcome == "resumed"
    assert uid(small) not in (None, first)
    record = small.run_folder.json("run.json")
    assert record is not None and record["token"] != token
    state = look(small.run, small.cluster(), small.store.url)
    assert state.phase == "starting" and state.error is None  # what the old driver said is over
    with pytest.raises(ClusterError, match="has not ended"):
        control.resume(small.run, small.cluster(), small.store)


def test_resume_takes_another_profile_and_changed_settings_but_no_other_study(small: Small) -> None:
    small.submit()
    small.kuberay_says("Failed", "FAILED", "AppFailed")
    small.write_study(batch=2048)  # in how many processes it runs: the same run
    assert "--study" in small.submit().note
    profile = small.profile.model_copy(update={"image": "registry.example/interp:2"})
    done = control.resume(small.run, small.cluster(), small.store, profile=profile, study_plan=small.plan())
    assert done.outcome == "resumed"
    assert control.plan_of(small.run_folder).study.fit.harvesters == 2
    job = small.kube.get("RayJob", small.run)
    assert job is not None and "interp:2" in str(job["spec"]["rayClusterSpec"])
    run = small.run
    small.kuberay_says("Failed", "FAILED", "AppFailed")
    small.write_study(k=8)
    with pytest.raises(SpecError, match="does not make this run"):
        control.resume(run, small.cluster(), small.store, study_plan=small.plan())
    job = small.kube.get("RayJob", run)
    assert job is not None and job["status"]["jobDeploymentStatus"] == "Failed"


def test_resume_does_not_make_it_in_another_namespace(small: Small) -> None:
    small.submit()
    with pytest.raises(SpecError, match="another namespace"):
        control.resume(small.run, Cluster.open(None, "default"), small.store)


def test_resume_does_not_make_it_on_another_cluster(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small.submit()
    small.kuberay_says("Running", "RUNNING")
    with KubeApi() as other:
        monkeypatch.setenv("KUBECONFIG", str(other.kubeconfig(tmp_path / "other", context="other")))
        elsewhere = small.cluster()
        for said in (None, "running", "failed"):
            if said is not None:
                small.driver_says(said)
            with pytest.raises(SpecError, match="another cluster") as failure:
                control.resume(small.run, elsewhere, small.store)
            assert "context double" in str(failure.value) and "context other" in str(failure.value)
        small.driver_says("running")
        assert look(small.run, elsewhere, small.store.url).phase == "running"
        assert control.submit(small.plan(), small.profile, elsewhere, small.store).outcome == "already running"
        # It is asked to stop through the store, and may then go elsewhere.
        assert control.cancel(small.run, elsewhere, small.store, wait=0).outcome == "cancelled"
        assert control.resume(small.run, elsewhere, small.store).outcome == "resumed"
        assert len(other.objects("RayJob")) == 1


def test_nothing_is_decided_on_a_store_that_cannot_be_read(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    small.submit()
    small.driver_says("failed", {"kind": "RuntimeError", "message": "boom"})
    small.kube.remove("RayJob", small.run)
    plan, store, record = small.plan(), small.store, small.run_folder.json("run.json")

    run, cluster = small.run, small.cluster()

    def hiccup(*_: object) -> None:
        raise StoreError("no answer")

    with monkeypatch.context() as patch:
        patch.setattr(type(store.backend), "read", hiccup)
        for command in (
            lambda: control.submit(plan, small.profile, cluster, store),
            lambda: control.resume(run, cluster, store, profile=small.profile, study_plan=plan),
            lambda: control.cancel(run, cluster, store),
        ):
            with pytest.raises(StoreError, match="no answer"):
                command()
    assert small.kube.objects("RayJob") == [] and small.run_folder.json("run.json") == record


def test_what_is_not_in_effect_is_told(small: Small) -> None:
    small.submit()
    other = small.profile.model_copy(update={"image": "registry.example/interp:2"})
    done = control.submit(small.plan(), other, small.cluster(), small.store, retry_failed=True)
    assert done.outcome == "already running" and "not in effect: the profile, --retry-failed" in done.note
    assert small.submit().note == ""
    small.kuberay_says("Failed", "FAILED", "AppFailed")
    done = control.submit(small.plan(), other, small.cluster(), small.store, retry_failed=True)
    assert done.outcome == "ended" and done.note.endswith(f"interp resume {small.run} --profile PROFILE --retry-failed")
    assert control.resume(small.run, small.cluster(), small.store, retry_failed=True).outcome == "resumed"
    job = small.kube.get("RayJob", small.run)
    assert job is not None and "--retry-failed" in job["spec"]["entrypoint"]


def test_the_rayjob_of_a_run_that_has_ended_is_removed_by_cancel(small: Small) -> None:
    small.submit()
    small.kuberay_says("Failed", "FAILED", "PreRunningDeadlineExceeded")  # no driver ever spoke
    done = control.cancel(small.run, small.cluster(), small.store)
    assert (done.outcome, done.phase) == ("ended", "failed") and "RayJob was removed" in done.note
    assert uid(small) is None and phase(small) == "cancelled"
    assert control.resume(small.run, small.cluster(), small.store).outcome == "resumed"
    small.kuberay_says("Failed", "FAILED", "AppFailed")
    small.driver_says("failed", {"kind": "RuntimeError", "message": "boom"})
    control.cancel(small.run, small.cluster(), small.store)
    assert uid(small) is None and phase(small) == "failed"  # the driver's own word stays


def test_a_right_that_is_missing_is_told_and_the_rest_is_asked(small: Small) -> None:
    small.submit()
    small.kuberay_says("Initializing")
    quota = {"type": "Warning", "reason": "FailedCreate", "message": "exceeded quota: team, requested: cpu=9"}
    small.kube.put(
        {"kind": "Event", "metadata": {"name": "e"}, "involvedObject": {"kind": "RayJob", "name": small.run}, **quota}
    )
    small.kube.deny("list", "pods")
    state = look(small.run, small.cluster(), None)
    assert state.reason is not None and state.reason.kind == "quota"
    small.kube.deny("list", "events")
    state = look(small.run, small.cluster(), None)
    assert state.phase == "starting" and state.reason is not None and state.reason.kind == "not-allowed"
    assert "list pods" in state.reason.why and "list events" in state.reason.why


def test_what_does_not_fit_is_refused_before_the_old_rayjob_goes(small: Small) -> None:
    small.submit()
    small.kuberay_says("Failed", "FAILED", "AppFailed")
    tiny = small.profile.workers[0].model_copy(update={"memory": 1000})
    with pytest.raises(Exception, match="memory"):
        control.resume(
            small.run, small.cluster(), small.store, profile=small.profile.model_copy(update={"workers": (tiny,)})
        )
    assert uid(small) is not None and phase(small) == "failed"


def test_cancel_asks_the_driver_then_removes_the_rayjob_and_again_is_nothing(small: Small) -> None:
    small.submit()
    small.kuberay_says("Running", "RUNNING")
    small.driver_says("running", stage="fit", state="running")
    asked: list[bool] = []

    def driver() -> None:
        while small.run_folder.json("cancel.json") is None:
            pass
        asked.append(small.kube.get("RayJob", small.run) is not None)
        small.driver_says("stopped", {"kind": "Cancelled", "message": "by somebody"})

    thread = threading.Thread(target=driver, daemon=True)
    thread.start()
    done = control.cancel(small.run, small.cluster(), small.store, wait=20)
    thread.join(20)
    assert done.outcome == "cancelled" and asked == [True]
    assert uid(small) is None and phase(small) == "cancelled"
    again = control.cancel(small.run, small.cluster(), small.store)
    assert (again.outcome, again.phase) == ("ended", "cancelled")
    assert small.submit().outcome == "ended"
    assert control.resume(small.run, small.cluster(), small.store).outcome == "resumed"
    small.kuberay_says("Running", "RUNNING")
    assert phase(small) == "running"  # the old request to stop is not for this driver


def test_cancel_does_not_wait_for_a_driver_that_is_silent_or_has_not_begun(small: Small) -> None:
    small.submit()
    assert control.cancel(small.run, small.cluster(), small.store, wait=600).outcome == "cancelled"
    assert phase(small) == "cancelled"
    assert control.resume(small.run, small.cluster(), small.store).outcome == "resumed"


def test_cancel_of_a_finished_run_removes_its_rayjob_alone(small: Small) -> None:
    small.submit()
    small.make_artifacts()
    small.kuberay_says("Complete", "SUCCEEDED")
    small.driver_says("succeeded")
    done = control.cancel(small.run, small.cluster(), small.store)
    assert (done.outcome, done.phase) == ("ended", "succeeded")
    assert uid(small) is None and small.run_folder.text("cancel.json") is None
    assert control.resume(small.run, small.cluster(), small.store).outcome == "cached"
    assert phase(small) == "succeeded"  # the store knows


def test_a_succeeded_run_is_made_again_when_its_artifacts_are_gone_or_prompts_are_tried_again(small: Small) -> None:
    small.submit()
    small.make_artifacts()
    small.kuberay_says("Complete", "SUCCEEDED")
    first, trace = uid(small), small.plan().stage("trace")
    assert control.is_cached(small.plan(), retry_failed=False) and not control.is_cached(small.plan(), True)
    assert small.submit(retry_failed=True).outcome == "submitted"
    second, job = uid(small), small.kube.get("RayJob", small.run)
    assert second != first and job is not None and "--retry-failed" in job["spec"]["entrypoint"]
    small.kuberay_says("Complete", "SUCCEEDED")
    assert trace is not None
    small.store.remove("trace", trace.key)
    assert small.submit().outcome == "submitted" and uid(small) != second


def test_there_is_no_such_run(small: Small) -> None:
    with pytest.raises(ArtifactMissing, match="no plan"):
        control.resume("nobody-0", small.cluster(), small.store)
    assert control.cancel("nobody-0", small.cluster(), small.store).outcome == "ended"


def test_a_store_out_of_reach_is_told_and_the_rayjob_is_shown(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    small.submit()
    small.kuberay_says("Running", "RUNNING")
    run, cluster = small.run, small.cluster()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    state = look(run, cluster)
    assert state.phase == "running" and state.reason is not None and state.reason.kind == "store-unreachable"
    assert "wrong" not in str(state.to_json())


def test_differences(small: Small) -> None:
    small.submit()
    then = control.plan_of(small.run_folder)
    assert difference(small.plan(), then).to_json() == {"equal": True, "stages": (), "settings": ()}
    small.write_study(batch=2048)
    found = difference(small.plan(), then)
    assert not found.stages
    assert [(field.path, field.then, field.now) for field in found.settings] == [("fit.harvesters", 1, 2)]
    small.write_study(k=8)
    found = difference(small.plan(), then)
    assert [stage.stage for stage in found.stages] == ["fit", "trace"] and not found.settings
    fields = {field.path: (field.then, field.now) for field in found.stages[0].fields}
    assert list(fields.values()) == [(4, 8)] and next(iter(fields)).endswith("activation.k")
    inputs = {field.path for field in found.stages[1].fields}
    assert any(path.startswith("inputs.") for path in inputs)


def test_a_glance_asks_for_no_pods(small: Small) -> None:
    small.submit()
    small.driver_says("running", stage="fit", state="running")
    small.kube.requests.clear()
    state = glance(small.run, small.kube.get("RayJob", small.run), None)
    assert [stage.state for stage in state.stages] == ["waiting", "waiting", "waiting"] and state.phase == "starting"
    assert small.kube.requests == []
