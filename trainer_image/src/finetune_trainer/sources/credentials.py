"""Reads the credentials of an object store from the environment."""

from __future__ import annotations

from collections.abc import Mapping

from finetune_trainer.contract.credentials import CREDENTIALS, SESSION_TOKEN
from finetune_trainer.contract.run_spec import ObjectStoreSource
from finetune_trainer.errors import StageError
from finetune_trainer.sources.subject import Subject


def credentials(
    source: ObjectStoreSource, kind: str, subject: Subject, environment: Mapping[str, str]
) -> dict[str, str]:
    """Return obstore's settings for the credentials that `environment` holds for a kind of store.

    Empty where there are none and the source has no prefix: then the pod's own identity is meant. Raises
    StageError with the subject's access-denied reason where a prefix is given and no set is complete under it.
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
        subject.access_denied,
        f"the Secret for {subject.name}.source must hold {wanted}, found none of these complete; add the keys",
    )
