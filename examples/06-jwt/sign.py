"""Prints a token as an identity provider would give it: `python sign.py TEAM USER [SECONDS]`.

Stands for the provider's token endpoint. The key is throw-away: its public half is in issuer-keys.yaml.
"""

import sys
import time

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


def token(team: str, user: str, seconds: float) -> str:
    """Signed, for `seconds` from now on (in the past if negative)."""
    now = int(time.time())
    claims = {
        "iss": "https://id.example",
        "aud": "llm",
        "sub": user,
        "org": {"team": team},
        "app": "chat",
        "iat": now + min(0, int(seconds)),
        "exp": now + int(seconds),
    }
    return jwt.encode(claims, KEY, "EdDSA", headers={"kid": "throw-away"})


if __name__ == "__main__":
    print(token(sys.argv[1], sys.argv[2], float(sys.argv[3]) if len(sys.argv) > 3 else 3600))
