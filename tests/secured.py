"""Callers with names, for tests: their entries in a server's `auth_file`, and their headers."""

import hashlib

TOKENS = {role: f"{role}-token" for role in ("infer", "operate", "observe")}
Header = tuple[str, str | bytes]


def digest(token: str) -> str:
    return "sha256:" + hashlib.sha256(token.encode()).hexdigest()


def entry(name: str, role: str, token: str, more: str = "") -> str:
    return f'[callers.{name}]\nrole = "{role}"\ntoken = "{digest(token)}"\n{more}\n'


EVERYONE = "".join(entry(f"{role}-er", role, token) for role, token in TOKENS.items())


def bearer(token: str) -> list[Header]:
    return [("authorization", f"Bearer {token}")]
