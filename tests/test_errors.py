"""Messages name the place at fault, and keep to themselves what only its user should know."""

from __future__ import annotations

import pickle

import pytest

from fmcortex.errors import StorageError, without_secrets

SIGNED = {
    "s3": (
        "https://b.s3.amazonaws.com/x.nwb?X-Amz-Algorithm=AWS4-HMAC-SHA256"
        "&X-Amz-Credential=HIDDEN%2F20261126%2Feu%2Fs3%2Faws4_request&X-Amz-Date=20261126T000000Z"
        "&X-Amz-Expires=300&X-Amz-Security-Token=HIDDEN%2B/==&X-Amz-Signature=HIDDEN0a"
    ),
    "s3, version 2": "https://b/x.nwb?AWSAccessKeyId=HIDDEN&Signature=HIDDEN%3D&Expires=17",
    "google": "https://g/b/x.nwb?X-Goog-Credential=HIDDEN%40p&X-Goog-Signature=HIDDEN",
    "azure": "https://a.blob.core.windows.net/c/x.nwb?sv=2024&se=2026-12-01&sp=r&sig=HIDDEN%3D",
    "token": "https://h/x.nwb?access_token=HIDDEN&download=1",
    "token alone": "https://h/x.nwb?token=HIDDEN",
    "user": "https://ann:HIDDEN@h:8080/x.nwb",
    "user of a database": "mysql+pymysql://HIDDEN:HIDDEN!x@db/mlflow",
}


@pytest.mark.parametrize("url", SIGNED.values(), ids=SIGNED)
@pytest.mark.parametrize(
    "message", ["{}: cannot read: lost", "Cannot connect to '{}' [None]", 'say "{}"; {}, {}']
)
def test_secrets_of_urls_are_left_out_of_messages(url: str, message: str) -> None:
    error = StorageError(message.replace("{}", url))
    assert "HIDDEN" not in str(error)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    place = url.split("?")[0].rpartition("@")[2].removeprefix("https://")
    for part in message.split("{}"):
        assert part in str(error)  # the rest of the message stays
    assert str(error).count(place) == message.count("{}")


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/data/x.tar: cannot read: no such file or folder",
        "https://h/x.nwb?download=1&significance=2&design=a: cannot read",
        "nobody@example.org, https://h/a@b",
        "--set data.url=s3://x: sig=3",
    ],
)
def test_everything_else_stays(text: str) -> None:
    assert without_secrets(text) == text
    assert str(StorageError(text)) == text


def test_what_a_signed_url_says_beside_its_secrets_stays() -> None:
    assert without_secrets(SIGNED["azure"]).endswith("?sv=2024&se=2026-12-01&sp=r&sig=...")
    assert without_secrets(SIGNED["token"]).endswith("?access_token=...&download=1")
