"""One session's way through the job: from its folder to its manifest, task by task.

Fingerprint of the source, survey in parts, shards, end. Each task may be run on any machine, and
what an earlier, unfinished run has left whole at the target is taken over: the survey, each movie,
each shard.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from data_prep.at_target import damage, forget, session_bytes, session_manifest, tiers_of
from data_prep.fingerprint import fingerprint, same_sizes, source_sha256
from data_prep.journal import (
    JOURNAL,
    SOURCES,
    SURVEY,
    check_ours,
    done,
    note,
    remove_empty,
    remove_written,
)
from data_prep.kinds import Kinds
from data_prep.parallel import Task
from data_prep.readers.deconvolved import check_made_from
from data_prep.scaling import Scaling, constant, scaling_of
from data_prep.session_view import Tiers, View, neurons_with_values, open_session
from data_prep.session_writer import Origin, finish_session, origin_of
from data_prep.settings import PrepSettings
from data_prep.shard_writer import (
    ShardPlan,
    WrittenShard,
    plan_shards,
    shard_inputs,
    whole_shard,
    write_shard,
)
from data_prep.survey import PART, Part, Survey, check_session, check_survey, join, survey_part
from fmcortex import storage
from fmcortex.data.files import ORIGIN
from fmcortex.data.manifest import VERSION, SessionManifest, SourceList
from fmcortex.errors import ConfigError, DataError, FmcortexError, StorageError, WorkerError


def look(folder: str, settings: PrepSettings, view: View, sized: SourceList | None) -> Look:
    """The first task: the fingerprint of the source, and the number of its trials.

    Args:
        folder: of the source.
        settings: of the preparation.
        view: what is changed of it.
        sized: files by whose names and sizes the source is known, where that is asked for.
    """
    known = sized is not None and same_sizes(folder, sized)
    sources = sized if known and sized is not None else fingerprint(folder)
    check_made_from(Path(folder), {path: file.sha256 for path, file in sources.files.items()})
    return sources, len(check_session(open_session(folder, settings, view)))


Look = tuple[SourceList, int]


def present_task(folder: str, settings: PrepSettings, view: View, number: int) -> np.ndarray:
    """Which neurons [U] have values in the training trials of part `number`."""
    reader = open_session(folder, settings, view)
    return neurons_with_values(reader, reader.trials()[number * PART : (number + 1) * PART])


def survey_task(folder: str, settings: PrepSettings, view: View, number: int) -> Part:
    """Survey part `number` of a session."""
    reader = open_session(folder, settings, view)
    refs = reader.trials()[number * PART : (number + 1) * PART]
    return survey_part(reader, refs, settings)


def join_task(
    folder: str, to: str, settings: PrepSettings, view: View, parts: list[Part], inputs: str
) -> Survey:
    """Join the parts of a survey and write it to the session's folder."""
    reader = open_session(folder, settings, view)
    survey = join(parts, reader.info, settings, inputs)
    survey = survey.model_copy(update={"left_out": list(view.left_out)})
    forget(to, reader.info.name)
    session = storage.join(to, "sessions", reader.info.name)
    note(session, [SURVEY])
    storage.write_bytes(storage.join(session, SURVEY), survey.sealed())
    return survey


def shard_task(
    folder: str,
    to: str,
    settings: PrepSettings,
    view: View,
    plan: ShardPlan,
    survey: Survey,
    scaling: Scaling,
    inputs: str,
    run: str,
) -> tuple[WrittenShard, bool]:
    """Write a shard, unless it is there already; whether it was written."""
    name = Path(folder).name
    found = whole_shard(to, name, plan, inputs, run)
    if found is not None:
        return found, False
    reader = open_session(folder, settings, view)
    refs = {ref.key: ref for ref in reader.trials()}
    return write_shard(reader, to, plan, refs, survey, scaling, settings, inputs, run), True


def finish_task(
    folder: str,
    to: str,
    settings: PrepSettings,
    view: View,
    survey: Survey,
    scaling: Scaling,
    plans: list[ShardPlan],
    written: list[WrittenShard],
    sources: SourceList,
) -> SessionManifest:
    """Write the end of a session."""
    reader = open_session(folder, settings, view)
    sha256 = source_sha256(sources)
    return finish_session(
        reader, folder, to, survey, scaling, settings, plans, written, sources, sha256
    )


class SessionJob:
    """A session's state in the driver.

    Args:
        folder: of the source.
        to: URL of the dataset.
        settings: of the preparation.
        tiers: of a split made here.
        overwrite: whether to make the session again where it was made with other settings, or of
            another recording.
        content: whether a session that is at the target is read and checked, rather than only the
            sizes of its files.
        run: tells this run of the job from others.
        say: is told a line when the session is done, or failed.
        note: is told what is being done.
        kinds: of the sessions of the dataset.
    """

    def __init__(
        self,
        folder: Path,
        to: str,
        settings: PrepSettings,
        tiers: Tiers,
        overwrite: bool,
        content: bool,
        run: str,
        say: Callable[[str], None],
        note: Callable[[str], None],
        kinds: Kinds,
    ) -> None:
        self.name = folder.name
        self._kinds = kinds
        self.error: FmcortexError | None = None
        self._folder, self._to, self._settings = str(folder), to, settings
        self._view, self._overwrite = View(tiers), overwrite
        self._content, self._run = content, run
        self._why = ""
        self._ours = False
        self._say, self._note = say, note
        self._url = storage.join(to, "sessions", self.name)
        self._reused = 0

    def start(self) -> list[Task]:
        """Look at the source and at what is at the target.

        Raises:
            ConfigError: the session is there with other settings, and is not to be overwritten, or
                others have put something where it goes.
        """
        manifest = session_manifest(self._to, self.name)
        if manifest is None:
            check_ours(self._url)
        self._ours = True
        self._outdated = False
        sized = None
        if manifest is not None:
            self._outdated = self._check_settings(manifest)
            if self._settings.check_source == "size":
                sized = self._stored_sources()
        self._note(f"{self.name}: looking at the source")
        arguments = (self._folder, self._settings, self._view, sized)
        return [Task(look, arguments, partial(self._looked, manifest))]

    def _check_settings(self, manifest: SessionManifest) -> bool:
        mine, theirs = self._settings.content(), manifest.settings
        changed = sorted(k for k in {*mine, *theirs} if mine.get(k) != theirs.get(k))
        if changed and not self._overwrite:
            raise ConfigError(
                f"{self._to}: session {self.name} was prepared with another {', '.join(changed)};"
                " choose another target, or overwrite"
            )
        return bool(changed)

    def _stored_sources(self) -> SourceList | None:
        with suppress(FmcortexError):
            url = storage.join(self._url, SOURCES)
            return SourceList.parse_sealed(storage.read_bytes(url), url)
        return None

    def _looked(self, manifest: SessionManifest | None, found: Look) -> list[Task]:
        self._sources, trials = found
        self._sha256 = source_sha256(self._sources)
        if manifest is None:
            stored = self._stored_sources()
            if stored is None or source_sha256(stored) != self._sha256:
                self._check_origin()  # of a session that lost its manifest
        elif self._is_there(manifest):
            self._kinds.there(manifest)
            self._say(f"{self.name}: up to date")
            return []
        self._inputs = storage.sha256(
            json.dumps(
                [VERSION, self._sha256, self._settings.of_trials(), dict(self._view.tiers or {})],
                sort_keys=True,
            ).encode()
        )
        survey = self._stored_survey()
        if survey is not None:
            check_survey(survey, self._folder, self._settings)
            self._view = replace(self._view, left_out=tuple(survey.left_out))
            return self._surveyed(survey)
        self._trials = trials
        if self._settings.missing_neurons == "error":
            return self._begin_survey()
        self._note(f"{self.name}: looking for neurons without values")
        count = -(-trials // PART)
        self._present: list[np.ndarray] = []
        return [
            Task(
                present_task,
                (self._folder, self._settings, self._view, number),
                partial(self._some_present, count),
            )
            for number in range(count)
        ]

    def _some_present(self, parts: int, present: np.ndarray) -> list[Task]:
        self._present.append(present)
        if len(self._present) < parts:
            return []
        found = np.logical_or.reduce(self._present)
        if not found.any():
            raise DataError(f"{self._folder}: no neuron has any value in the training trials")
        self._view = replace(self._view, left_out=tuple(np.flatnonzero(~found).tolist()))
        return self._begin_survey()

    def _begin_survey(self) -> list[Task]:
        trials = self._trials
        count = -(-trials // PART)
        self._parts: list[Part | None] = [None] * count
        self._note(f"{self.name}: checking {trials} trials")
        return [
            Task(
                survey_task,
                (self._folder, self._settings, self._view, number),
                partial(self._part, number),
            )
            for number in range(count)
        ]

    def _is_there(self, manifest: SessionManifest) -> bool:
        """Whether the session at the target is the one to be made, and whole.

        Raises:
            ConfigError: it is of another recording, and is not to be overwritten.
        """
        if manifest.source_sha256 != self._sha256:
            self._check_origin()
            self._why = "its source has changed"
            return False
        if self._outdated or self._view.tiers not in (None, tiers_of(manifest)):
            return False
        problem = damage(self._to, manifest, self._run if self._content else None)
        if problem is not None:
            self._why = f"damaged: {problem}"
            return False
        done(self._url)  # a run may have been killed between the two
        return True

    def _check_origin(self) -> None:
        url = storage.join(self._url, ORIGIN)
        if self._overwrite or not storage.exists(url):
            return
        with suppress(DataError):
            found = Origin.parse_sealed(storage.read_bytes(url), url)
            if found.folder_sha256 != origin_of(self._folder).folder_sha256:
                raise ConfigError(
                    f"{self._folder}: another recording called {self.name}, from another folder,"
                    f" is at {self._to}; rename one of the two, or replace that with --overwrite"
                )

    def _stored_survey(self) -> Survey | None:
        """The survey of an earlier run from the same source and settings."""
        url = storage.join(self._url, SURVEY)
        with suppress(DataError):
            if storage.exists(url):
                survey = Survey.parse_sealed(storage.read_bytes(url), url)
                return survey if survey.inputs_sha256 == self._inputs else None
        return None

    def _part(self, number: int, part: Part) -> list[Task]:
        self._parts[number] = part
        done = sum(found is not None for found in self._parts)
        self._note(
            f"{self.name}: checked {min(done * PART, self._trials)} of {self._trials} trials"
        )
        if done < len(self._parts):
            return []
        parts, self._parts = self._parts, []
        arguments = (self._folder, self._to, self._settings, self._view, parts, self._inputs)
        return [Task(join_task, arguments, self._surveyed)]

    def _surveyed(self, survey: Survey) -> list[Task]:
        self._kinds.surveyed(self.name, survey)
        forget(self._to, self.name)
        settings = self._settings
        self._survey, self._scaling = survey, scaling_of(survey, settings)
        self._plans = plan_shards(survey, settings)
        names = [f"{plan.name}.{kind}" for plan in self._plans for kind in ("tar", "index.json")]
        note(self._url, [SURVEY, SOURCES, ORIGIN, *names])
        self._written: list[WrittenShard | None] = [None] * len(self._plans)
        # A shard's task needs of the survey all but its trials.
        common = survey.model_copy(update={"trials": [], "excluded": []})
        tasks = []
        for number, plan in enumerate(self._plans):
            inputs = shard_inputs(plan, self._scaling, survey.delays, settings, self._sha256)
            arguments = (self._folder, self._to, settings, self._view)
            arguments += (plan, common, self._scaling, inputs, self._run)  # type: ignore[assignment]
            tasks.append(Task(shard_task, arguments, partial(self._shard, number)))
        return tasks

    def _shard(self, number: int, result: tuple[WrittenShard, bool]) -> list[Task]:
        self._written[number], wrote = result
        self._reused += not wrote
        done = sum(shard is not None for shard in self._written)
        self._note(f"{self.name}: shard {done} of {len(self._written)}")
        if done < len(self._written):
            return []
        arguments = (self._folder, self._to, self._settings, self._view, self._survey)
        arguments += (self._scaling, self._plans, self._written, self._sources)  # type: ignore[assignment]
        return [Task(finish_task, arguments, self._finished)]

    def _finished(self, manifest: SessionManifest) -> list[Task]:
        left_out = len(manifest.excluded)
        excluded = f", {left_out} trial{'s' * (left_out > 1)} left out" if left_out else ""
        fewer = len(self._view.left_out)
        excluded += f", {fewer} neuron{'s' * (fewer > 1)} without values left out" if fewer else ""
        still = _constant_channels(manifest, self._survey)
        excluded += f"; {', '.join(still)} did not vary in training" if still else ""
        reused = f", {self._reused} of {len(self._written)} shards kept" if self._reused else ""
        self._say(
            f"{self.name}: {manifest.neurons} neurons, {len(manifest.trials)} training trials"
            f" ({manifest.train_minutes:.1f} min), {len(manifest.videos)} repeated videos,"
            f" {session_bytes(manifest) / 1e6:.1f} MB{excluded}{reused}"
            + (f"; made again: {self._why}" if self._why else "")
        )
        return []

    def failed(self, error: FmcortexError) -> None:
        """Keep the error; of a session that cannot be made, leave nothing but an older version."""
        self.error = error
        self._say(f"{self.name}: failed: {error}")
        again = isinstance(error, StorageError | WorkerError)
        if not again and self._ours and session_manifest(self._to, self.name) is None:
            with suppress(StorageError):
                remove_written(self._url, [JOURNAL])
                done(self._url)
                remove_empty(self._url)


def _constant_channels(manifest: SessionManifest, survey: Survey) -> list[str]:
    """The channels of behaviour that are left unscaled, of which a model can learn nothing."""
    return [
        name
        for names, found in (
            (manifest.perspectives, survey.perspectives),
            (manifest.modulations, survey.modulations),
        )
        for name, still in zip(names, constant(found), strict=True)
        if still
    ]
