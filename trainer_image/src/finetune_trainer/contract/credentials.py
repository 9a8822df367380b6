"""Environment variables that hold the credentials of an object store.

The operator fills them from the Secret that a source names, each under the source's prefix.
"""

from __future__ import annotations

from collections.abc import Mapping

# For each kind of store (the scheme of its URIs): the sets of variables that are enough to sign in. Each variable
# has the name that the cloud's own tools use, and obstore's name for the same setting. The first complete set is used.
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

# White space, a byte order mark, and characters without width that are copied along with a token.
_SURROUNDING = " \t\r\n\v\f\x00\x85\xa0\u2028\u2029\u200b\u200c\u200d\u2060\ufeff"


def clean_secret(value: str | None) -> str:
    """Return a value from a Secret without the white space that editors and `echo` add around it; "" for None."""
    return "" if value is None else value.strip().strip(_SURROUNDING).strip()
