"""Whether the sessions of a dataset are of one kind: frame rate, size, normalisation."""

from __future__ import annotations

from collections.abc import Collection

from data_prep.at_target import session_manifest
from data_prep.settings import PrepSettings
from data_prep.survey import Survey
from fmcortex import storage
from fmcortex.data.identity import Kind, check_alike, kind_of, kind_of_session
from fmcortex.data.manifest import SessionManifest

TODO = "prepare all of them alike, choose another target, or set mixed=true"


class Kinds:
    """The kinds of the sessions at a target, those that are being prepared included.

    Args:
        to: URL of the dataset.
        settings: of the preparation.
        names: of the sessions that are prepared; of the others at the target the manifests count.

    Raises:
        ConfigError: the settings do not go with what is at the target.
    """

    def __init__(self, to: str, settings: PrepSettings, names: Collection[str]) -> None:
        self._settings, self._mixed = settings, settings.mixed
        self._known: dict[str, Kind] = {}
        if settings.mixed:
            return
        for name in storage.names(storage.join(to, "sessions")):
            manifest = session_manifest(to, name)
            if manifest is not None:
                self._known[name] = kind_of_session(manifest)
        first = next(iter(self._known.values()), None)
        # Where they are mixed already, that was asked for before.
        self._mixed = any(kind != first for kind in self._known.values())
        self._known = {name: kind for name, kind in self._known.items() if name not in names}
        if self._mixed:
            return
        if self._known and names:
            other = next(iter(self._known))
            asked = self._kind(settings.height or 0, settings.width or 0)
            if settings.height is None:
                asked["size"] = self._known[other]["size"]  # known once a session was read
            check_alike({other: self._known[other], min(names): asked}, TODO)

    def _kind(self, height: int, width: int) -> Kind:
        settings = self._settings
        return kind_of(settings.frame_rate, height, width, settings.response_normalisation)

    def surveyed(self, name: str, survey: Survey) -> None:
        """Add a session that was looked at.

        Raises:
            ConfigError: it is of another kind than those before.
        """
        self._add(name, self._kind(survey.height, survey.width))

    def there(self, manifest: SessionManifest) -> None:
        """Add a session that is there already.

        Raises:
            ConfigError: it is of another kind than those before.
        """
        self._add(manifest.session, kind_of_session(manifest))

    def _add(self, name: str, kind: Kind) -> None:
        if self._mixed:
            return
        if self._known:
            other = next(iter(self._known))
            check_alike({other: self._known[other], name: kind}, TODO)
        self._known[name] = kind
