"""Which environment variables hold an object store's credentials."""

from __future__ import annotations

from collections.abc import Mapping

from finetune_trainer.contract.run_spec import ObjectStoreSource
from finetune_trainer.errors import StageError
from finetune_trainer.sources.subject import Subject

# By kind of store (scheme of its URIs), the complete sets of variables, each with obstore's name for the setting;
# the first set that is complete is used. The variables' names are those of the clouds' own tools.
CREDENTIALS: Mapping[str, tuple[Mapping[str, str], ...]] = {
    "s3": ({"AWS_ACCESS_KEY_ID": "access_key_id", "AWS_SECRET_ACCESS_KEY": "secret_access_key"},),
    "gs": ({"GOOGLE_SERVICE_ACCOUNT_KEY": "service_account_key"},),
    "az": (
        {"AZURE_STORAGE_ACCOUNT_KEY": "account_key"},
        {"AZURE_STORAGE_SAS_TOKEN": "sas_key"},
        {
            "AZURE_CLIENT_ID": "client_id",
            "AZURE_CLIENT_SECRET": "client_secret",
            "AZURE_TENANT_ID": "tenant_id",
        },
    ),
}
SESSION_TOKEN = "AWS_SESSION_TOKEN"  # noqa: S105 -- a variable's name
REGIONS = ("AWS_REGION", "AWS_DEFAULT_REGION")
NAMES = frozenset(
    {SESSION_TOKEN, *(name for sets in CREDENTIALS.values() for names in sets for name in names)}
)


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
