"""Verifies a webhook by the reference library of Python.

Reads {"headers", "body", "secrets": {name: secret}} and prints for each secret whether it verifies, and
whether an altered body does.
"""

import json
import sys

from standardwebhooks import Webhook, WebhookVerificationError


def verdict(secret: str, body: str) -> str:
    try:
        Webhook(secret).verify(body, given["headers"])
    except WebhookVerificationError:
        return "refused"
    return "verified"


given = json.load(sys.stdin)
verdicts = [f"{name}: {verdict(given['secrets'][name], given['body'])}" for name in ("current", "previous", "other")]
verdicts.append(f"altered: {verdict(given['secrets']['current'], given['body'] + ' ')}")
print("; ".join(verdicts))
