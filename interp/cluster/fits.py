"""Whether a plan can run on what a profile allows at most, asked before anything is submitted.

A study that asks for more than the cluster can ever have would wait for ever, or until its deadline. Refused is what
cannot fit even when every worker group has grown to its `max` and nobody else is there:

    GPUs       all processes of a stage run at the same time, each with a GPU of its own
               fit       workers, and harvesters beside them when it is streamed (see `interp.plan.placement`)
               evaluate  as many as there are harvesters
               trace     trace.actors.min; more come where there is room
    CPUs       the same, where there are no GPUs or the study asks for none
    memory     of one process, against one GPU, or against its part of a node's memory beside /dev/shm

Only what is still to be done is asked about. `fit.device: auto` means GPUs where the profile has any.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from interp.cluster.profile import Profile
from interp.cluster.visible import require_visible
from interp.errors import EngineError, SpecError
from interp.plan.budget import sizes_of
from interp.plan.make import check_places, places_in
from interp.plan.nodes import Nodes, cpus_each, most_places, node_memory, working
from interp.plan.placement import Mode, Needs, place
from interp.plan.plan import Plan, PlannedStage
from interp.plan.shapes import ModelShape
from interp.spec.study import Study


def require_fit(plan: Plan, profile: Profile, shape: ModelShape | None = None) -> None:
    """Refuse a plan that the profile's cluster can never run.

    Args:
        shape: of the study's model; read from its configuration when absent.

    Raises:
        SpecError: pods cannot see the store or a source, see `interp.cluster.visible`.
        SpecError: also where a stage does not fit, with the numbers.
    """
    require_visible(plan.study)
    room = Room.of(plan.study, profile)
    for stage in plan.to_do:
        if stage.stage == "corpus":
            _require_memory(stage, stage.cost.memory, Room(profile, cuda=False), "a smaller corpus")
        elif stage.stage == "fit":
            _require_fit_stage(plan.study, room, shape)
        else:
            _CHECKS[stage.stage](plan.study, stage, room)


@dataclass(frozen=True)
class Room:
    """What work of one kind, on GPUs or on CPUs, finds at most."""

    profile: Profile
    cuda: bool

    @staticmethod
    def of(study: Study, profile: Profile) -> Room:
        """For the stages that follow `fit.device`.

        Raises:
            SpecError: the study asks for GPUs, and there are none.
        """
        gpus = any(group.gpus for group in profile.workers)
        if study.fit.device == "cuda" and not gpus:
            raise SpecError(
                f"the study asks for GPUs, and no worker group of profile {profile.metadata.name} has any",
                value=f"fit.device: cuda; groups: {', '.join(group.name for group in profile.workers)}",
                expected="a group with gpus of 1 or more",
                remedy="give the profile such a group, or set fit.device to auto or cpu",
            )
        return Room(profile, gpus and study.fit.device != "cpu")

    @property
    def nodes(self) -> tuple[Nodes, ...]:
        """Those that do the work: what the engine will be told, so that both go by the same rule."""
        return working([group.nodes for group in self.profile.workers], self.cuda)

    @property
    def places(self) -> int:
        """Processes that can run at the same time."""
        return most_places(self.nodes, self.cuda)

    @property
    def unit(self) -> str:
        return "GPU" if self.cuda else "place"

    @property
    def what(self) -> str:
        """What would have to be larger; for a fit on GPUs there is a command that counts."""
        if not self.cuda:
            return "nodes"
        kinds = sorted({group.gpu for group in self.profile.workers if group.gpu is not None})
        return f"GPUs (interp plan STUDY --gpu {kinds[0]} says how many a fit takes)"

    def memory(self, processes: int) -> int:
        """Bytes of one of so many processes: of the smallest GPU, for Ray puts it on any; or its part of a node. Where
        they find no place, which is told for itself, of a whole node."""
        each = cpus_each(self.nodes, processes, self.cuda)
        if not each and not self.cuda:
            return max(kind.for_processes for kind in self.nodes)
        return node_memory(self.nodes, each, self.cuda)

    def __str__(self) -> str:
        sizes = [f"{kind.name} {kind.count} x {most_places([kind], self.cuda) // kind.count}" for kind in self.nodes]
        return f"profile {self.profile.metadata.name}: {', '.join(sizes)}"


def _require_places(what: str, processes: int, made_of: str, room: Room, remedy: str) -> None:
    if (refused := _lack_of_places(what, processes, made_of, room, remedy)) is not None:
        raise refused


def _lack_of_places(what: str, processes: int, made_of: str, room: Room, remedy: str) -> SpecError | None:
    if cpus_each(room.nodes, processes, room.cuda):
        return None
    most = min(room.places, processes - 1)
    return SpecError(
        f"{what} needs {_count(processes, room.unit)} at once ({made_of}), and the profile's groups give at most "
        f"{most}",
        value=str(room),
        expected=f"at least {_count(processes, room.unit)}",
        remedy=f"{remedy}, or raise `max` of {'a group with GPUs' if room.cuda else 'a group'} in the profile",
    )


def _require_memory(stage: PlannedStage, size: int, room: Room, remedy: str, processes: int = 1) -> None:
    has = room.memory(processes)
    if size > has:
        where = "its GPUs have" if room.cuda else "its nodes have, beside /dev/shm,"
        raise SpecError(
            f"{stage.stage} needs {_gb(size)} in one process, and {where} at most {_gb(has)}",
            value=str(room),
            expected=f"{'a GPU' if room.cuda else 'memory'} of at least {_gb(size)}",
            remedy=f"{remedy}, or a profile with larger {room.what}",
        )


def _require_activations(study: Study, stage: PlannedStage, room: Room) -> None:
    _require_memory(stage, stage.cost.memory, room, "a smaller fit.micro_tokens")


def _require_evaluation(study: Study, stage: PlannedStage, room: Room) -> None:
    harvesters = study.fit.harvesters
    _require_places("evaluate", harvesters, "fit.harvesters", room, "lower fit.harvesters")
    _require_memory(stage, stage.cost.memory, room, "a smaller evaluate.batch", harvesters)


def _require_trace(study: Study, stage: PlannedStage, room: Room) -> None:
    """What is read is model and dictionaries; the rest goes to disk when it does not fit."""
    assert study.trace is not None
    least = study.trace.actors.min
    if not isinstance(study.trace.prompts, str):
        least = min(least, len(study.trace.prompts))
    _require_places("trace", least, "trace.actors.min", room, "lower trace.actors.min")
    _require_memory(stage, stage.cost.bytes, room, "smaller dictionaries", least)


_CHECKS: dict[str, Callable[[Study, PlannedStage, Room], None]] = {
    "activations": _require_activations,
    "evaluate": _require_evaluation,
    "trace": _require_trace,
}


def _require_fit_stage(study: Study, room: Room, shape: ModelShape | None) -> None:
    """In one of the modes that the study leaves open."""
    shape, sets = check_places(study) if shape is None else (shape, places_in(study, shape))
    needs = sizes_of(study, shape, list(sets.values())).needs
    wanted = "colocated" if study.fit.cache else study.fit.mode
    modes: tuple[Mode, ...] = ("colocated", "streamed") if wanted == "auto" else (wanted,)
    lacking_memory, lacking_places = list[SpecError](), list[SpecError]()
    for mode in modes:
        if (error := _too_large(study, needs, room, mode)) is not None:
            lacking_memory.append(error)
        elif (error := _too_many(study, room, mode)) is not None:
            lacking_places.append(error)
        else:
            return
    # What lacks places alone is the nearer to fitting; and of memory a worker needs the least when streamed.
    raise lacking_places[0] if lacking_places else lacking_memory[-1]


def _too_large(study: Study, needs: Needs, room: Room, mode: Mode) -> SpecError | None:
    """Why a fit finds too little memory in this mode; None if it finds enough."""
    workers, harvesters = study.fit.workers, _harvesters(study, mode)
    memory = room.memory(workers + harvesters)
    try:
        place(needs, memory, workers, mode=mode, shards=study.fit.shards, beside=memory if harvesters else None)
    except EngineError as error:
        return SpecError(
            f"fit does not fit profile {room.profile.metadata.name}: {error.what}",
            value=str(error.value),
            expected=error.expected,
            remedy=f"{error.remedy}; or a profile with larger {room.what}",
        )
    return None


def _too_many(study: Study, room: Room, mode: Mode) -> SpecError | None:
    """Why its processes find no place in this mode."""
    workers, harvesters = study.fit.workers, _harvesters(study, mode)
    if not harvesters:
        return _lack_of_places("fit", workers, _count(workers, "worker"), room, "lower fit.workers")
    made_of = f"{_count(workers, 'worker')} + {_count(harvesters, 'harvester')}"
    return _lack_of_places("fit", workers + harvesters, made_of, room, "lower fit.workers or fit.harvesters")


def _harvesters(study: Study, mode: Mode) -> int:
    return study.fit.harvesters if mode == "streamed" else 0


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
