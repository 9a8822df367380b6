from __future__ import annotations

from finetune_operator.api.spec import FineTuneJobSpec, spec_hash

from tests.support.operator import make_spec


def parse(*entries: object) -> FineTuneJobSpec:
    return FineTuneJobSpec.parse(make_spec(output={"destinations": list(entries)}))


BUCKET = {"name": "bucket", "s3": {"uri": "s3://models/bot"}}
CLAIM = {"name": "claim", "persistentVolumeClaim": {"claimName": "artifacts"}}


def test_a_claims_folder_has_the_jobs_name_unless_the_spec_says_another() -> None:
    claims = parse(CLAIM, BUCKET).output.claims
    assert {name: claim.folder("demo") for name, claim in claims.items()} == {"claim": "demo"}
    own = FineTuneJobSpec.parse(make_spec()).output.claims
    assert list(own) == [""]
    other = {"name": "claim", "persistentVolumeClaim": {"claimName": "artifacts", "path": "a"}}
    assert parse(other).output.claims["claim"].folder("demo") == "a"


def test_only_a_store_has_a_reference_to_a_store() -> None:
    bucket, claim = parse(BUCKET, CLAIM).output.destinations or ()
    assert bucket.object_store is not None
    assert claim.object_store is None


def test_the_secret_is_that_of_the_place() -> None:
    store = {"name": "a", "s3": {"uri": "s3://models/bot", "secretRef": {"name": "keys"}}}
    registry = {"name": "b", "oci": {"reference": "host/bot:1", "secretRef": {"name": "login"}}}
    found = parse(store, registry, CLAIM, BUCKET).output.destinations or ()
    assert [each.secret and each.secret.name for each in found] == ["keys", "login", None, None]


def test_a_hub_repository_has_the_branch_main_unless_the_spec_says_another() -> None:
    given = {"repository": "team/bot", "tokenSecretRef": {"name": "hub", "key": "token"}}
    plain, other = (
        parse({"name": "hub", "huggingFace": each}).output.destinations or ()
        for each in (given, {**given, "revision": "v2", "private": False})
    )
    assert [each.hugging_face and each.hugging_face.uri for each in (*plain, *other)] == [
        "hf://team/bot@main",
        "hf://team/bot@v2",
    ]
    assert plain[0].secret is None


def test_leave_to_overwrite_does_not_make_another_model() -> None:
    plain = spec_hash(parse(BUCKET))
    assert spec_hash(parse({**BUCKET, "overwrite": True})) == plain
    assert spec_hash(parse({**BUCKET, "overwrite": False})) == plain
    assert spec_hash(parse(BUCKET, CLAIM)) != plain


def test_an_image_has_the_second_tag_that_the_trainer_makes_too() -> None:
    given = (
        {"reference": "host:5000/bot:1"},
        {"reference": "host/bot:1", "imageTag": "v"},
        {"reference": f"h/b:{'x' * 128}"},
        {"reference": "[fd00::1]:5000/team/bot:1"},
    )
    found = [parse({"name": "a", "oci": each}).output.destinations or () for each in given]
    assert [each[0].oci and each[0].oci.references[1] for each in found] == [
        "host:5000/bot:1-image",
        "host/bot:v",
        f"h/b:{'x' * 122}-image",
        "[fd00::1]:5000/team/bot:1-image",
    ]
