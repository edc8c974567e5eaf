"""Settings of the tokens that the router issues itself. `auth.issuers` has the settings of other issuers."""

from dataclasses import dataclass

from router.config.declaration import setting


@dataclass(frozen=True, kw_only=True)
class TokenIssuingSettings:
    """Settings of the router's own tokens for services with `token_auth_enabled`."""

    token_issuing: bool = setting("Issue tokens for services with token_auth_enabled, and accept them.", default=True)
    token_lifetime_seconds: int = setting(
        "Lifetime of an issued token, unless the client requests another one.",
        unit="s",
        default=3600,
        minimum=60,
        maximum=86_400,
    )
    token_key_rotation_seconds: float = setting(
        "Age at which the token signing key is replaced. The previous key stays valid until its tokens have expired.",
        unit="s",
        default=2_592_000.0,
        minimum=86_400,
        maximum=31_536_000,
    )
