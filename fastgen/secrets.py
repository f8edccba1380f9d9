"""What counts as a secret, by its name: flags of a server, fields of a request. No I/O.

The names are those that vLLM, Hugging Face, OpenAI, LiteLLM and cloud stores use for a credential. A name that merely
contains such a word (``--long-prefill-token-threshold``, ``stop_token_ids``) is no secret.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Final

HIDDEN: Final = "***"
"""Shown and stored in place of a secret; never used as a value."""
_NAMES: Final = frozenset(
    {
        *("apikey", "xapikey", "adminapikey", "apitoken", "hftoken", "token", "accesstoken", "authtoken"),
        *("bearertoken", "sessiontoken", "securitytoken", "authorization", "password", "sslkeyfilepassword"),
        *("secret", "clientsecret", "secretkey", "accesskey", "accesskeyid", "secretaccesskey", "awsaccesskeyid"),
        *("awssecretaccesskey", "awssessiontoken", "privatekey", "credentials", "vertexcredentials"),
    }
)


_ENDINGS: Final = ("apikey", "password", "secret", "secretkey", "accesskey", "accesstoken", "authtoken")
"""A longer name that ends like this is a secret too: ``--openai-api-key``, ``--s3-secret``."""


def names_a_secret(name: str) -> bool:
    """Whether a flag or field of this name holds a secret; of a dotted name the last part counts."""
    plain = re.sub(r"[-_]", "", name.rpartition(".")[2]).lower()
    return plain in _NAMES or plain.endswith(_ENDINGS)


def secret_name_in(value: object) -> str | None:
    """The first name of a secret in a JSON value, at any depth; ``None`` where there is none."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            if names_a_secret(str(name)):
                return str(name)
            if (found := secret_name_in(inner)) is not None:
                return found
    elif isinstance(value, Sequence) and not isinstance(value, str):
        return next((found for inner in value if (found := secret_name_in(inner)) is not None), None)
    return None


def holds_a_secret(text: str) -> bool:
    """Whether a text is JSON in which something is named as a secret."""
    if not text.lstrip().startswith(("{", "[")):
        return False
    try:
        return secret_name_in(json.loads(text)) is not None
    except (ValueError, RecursionError):
        return False
