"""Reads the credentials of an object store from the environment."""

from __future__ import annotations

from collections.abc import Mapping

from finetune_trainer.contract.credentials import CREDENTIALS, SESSION_TOKEN, clean_secret
from finetune_trainer.contract.object_store import ObjectStoreSource
from finetune_trainer.errors import StageError
from finetune_trainer.sources.fetch_target import FetchTarget
from finetune_trainer.sources.secret_values import require_header_value

# Sent in the body of a request, where any character is possible.
_FREE_TEXT = frozenset({"service_account_key", "client_secret"})


def credentials(
    source: ObjectStoreSource, kind: str, target: FetchTarget, environment: Mapping[str, str]
) -> dict[str, str]:
    """Return obstore's settings for the credentials that `environment` holds for a kind of store.

    Without a prefix and without credentials the result is empty, and the client uses the pod's own identity. Raises
    StageError with the target's access-denied reason if the source has a prefix and no set under it is complete, or if
    a value cannot be sent in a request.
    """
    prefix = source.credentials_prefix or ""
    for names in CREDENTIALS[kind]:
        values = {setting: clean_secret(environment.get(prefix + name)) for name, setting in names.items()}
        if all(values.values()):
            for name, setting in names.items():
                if setting not in _FREE_TEXT:
                    require_header_value(values[setting], f"{name} for {target.field}", target)
            token = clean_secret(environment.get(prefix + SESSION_TOKEN)) if kind == "s3" else ""
            if token:
                require_header_value(token, f"{SESSION_TOKEN} for {target.field}", target)
                return {**values, "session_token": token}
            return values
    if source.credentials_prefix is None:
        return {}
    wanted = " or ".join(" and ".join(names) for names in CREDENTIALS[kind])
    raise StageError(
        target.access_denied,
        f"the Secret for {target.field} must hold {wanted}, but no set of keys is complete; add the "
        "missing keys",
    )
