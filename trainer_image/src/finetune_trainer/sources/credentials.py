"""Reads the credentials of an object store from the environment."""

from __future__ import annotations

from collections.abc import Mapping

from finetune_trainer.contract.credentials import CREDENTIALS, SESSION_TOKEN
from finetune_trainer.contract.run_spec import ObjectStoreSource
from finetune_trainer.errors import StageError
from finetune_trainer.sources.fetch_target import FetchTarget


def credentials(
    source: ObjectStoreSource, kind: str, target: FetchTarget, environment: Mapping[str, str]
) -> dict[str, str]:
    """Return obstore's settings for the credentials that `environment` holds for a kind of store.

    Without a prefix and without credentials the result is empty, and the client uses the pod's own identity. Raises
    StageError with the target's access-denied reason if the source has a prefix and no set under it is complete.
    """
    prefix = source.credentials_prefix or ""
    for names in CREDENTIALS[kind]:
        values = {setting: environment.get(prefix + name, "").strip() for name, setting in names.items()}
        if all(values.values()):
            token = environment.get(prefix + SESSION_TOKEN, "").strip()
            return {**values, "session_token": token} if kind == "s3" and token else values
    if source.credentials_prefix is None:
        return {}
    wanted = " or ".join(" and ".join(names) for names in CREDENTIALS[kind])
    raise StageError(
        target.access_denied,
        f"the Secret for {target.name}.source must hold {wanted}, but no set of keys is complete; add the "
        "missing keys",
    )
