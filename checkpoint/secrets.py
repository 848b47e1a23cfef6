"""What looks like a credential: found in what is to be stored, taken out of output that is recorded.

On the path of every command, so here stands only whether a text can hold one at all: a search for the letters that a form
of credential always has. The forms themselves stand in ``secret_rules``, which is loaded where one is suspected.
docs/secrets.md lists the rules, and why they are our own.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from checkpoint._load import load

MARKS: dict[str, tuple[str, ...]] = {
    "azure-client-secret": ("Q~",),
    "azure-storage-key": ("AccountKey=", "SharedAccessKey="),
    "infrastructure-token": (
        *("dop_v1_", "doo_v1_", "dor_v1_", "HRKU-", "dapi", ".atlasv1.", "pul-", "pscale_", "sbp_", "sb_secret_"),
        *("fm1_", "fm2_", "fo1_", "tskey-"),
    ),
    "secret-store-token": ("hvs.", "hvb.", "hvr.", "dp.pt.", "dp.st.", "dp.ct.", "dp.sa.", "dp.scim.", "dp.audit.", "ops_eyJ"),
    "chat-webhook": ("hooks.slack", "/webhooks/", ".com/webhook", "hooks.zapier.com/"),
    "stripe-key": ("k_live_", "k_test_", "whsec_"),
    "monitoring-token": (
        *(
            "eyJrIjoi",
            "glsa_",
            "glc_",
            "NRAA-",
            "NRAK-",
            "NRII-",
            "NRIQ-",
            "NRRA-",
            "NRAL",
            "sntrys_",
            "sntryu_",
            "sgp_",
            "phx_",
            "dt0",
        ),
    ),
    "private-key": ("PRIVATE KEY", "PuTTY-User-Key-File", "LS0tLS1CRUdJTi"),
    "signed-url": ("sig=", "-Signature="),
    "url-password": ("://",),
}
"""Rule -> letters, one of which stands in every text that it matches."""

LONG_MARKS: dict[str, tuple[str, ...]] = {
    "aws-access-key": ("ABIA", "ACCA", "AKIA", "ASIA"),
    "alibaba-access-key": ("LTAI",),
    "google-api-key": ("AIza",),
    "google-oauth": ("GOCSPX-", "ya29.", "1//0"),
    "azure-devops-token": ("AZDO",),
    "github-token": ("ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_"),
    "gitlab-token": (
        *("glpat-", "gloas-", "gldt-", "glrt-", "glrtr-", "glcbt-", "glptt-", "glft-", "glimt-", "glagent-", "glsoat-"),
        *("glwt-", "glffct-", "GR1348941"),
    ),
    "atlassian-token": ("ATATT3", "ATCTT3", "ATBB"),
    "npm-token": ("npm_",),
    "pypi-token": ("pypi-Ag",),
    "registry-token": ("dckr_", "rubygems_", "cio", "oy2", "CLOJARS_", "AKC", "cmVmd"),
    "ci-token": ("CCIPAT_", "bkua_", "sqp_", "squ_", "sqa_"),
    "slack-token": ("xox", "xapp-", "xwfp-"),
    "discord-token": (".",),
    "telegram-token": (":AA",),
    "twilio-key": ("SK",),
    "sendgrid-key": ("SG.",),
    "mail-service-key": ("key-", "-us", "xkeysib-"),
    "shop-token": ("sq0", "shpat_", "shpca_", "shppa_", "shpss_", "EZAK", "EZTK"),
    "anthropic-key": ("sk-ant-",),
    "openai-key": ("sk-",),
    "huggingface-token": ("hf_", "api_org_"),
    "model-service-key": ("gsk_", "xai-", "pplx-", "r8_", "nvapi-", "lsv2_", "pcsk_", "tvly-", "jina_", "sk_"),
    "work-tool-token": ("lin_api_", "lin_oauth_", "ntn_", "secret_", "figd_", "figo_", "figu_", "PMAK-", "CFPAT-", "pnu_"),
    "age-key": ("AGE-SECRET-KEY-1",),
    "jwt": ("eyJ",),
}
"""The same, for those that match no text without a long word. Short letters stand in many a text; both seldom do."""

WORDS: dict[str, tuple[str, ...]] = {
    "sql-password": ("identified", "password"),
    "authorization-header": ("authorization", "bearer"),
    "session-cookie": ("cookie",),
    "basic-auth-option": ("curl",),
    "password-assignment": ("pass", "pwd", "secret", "token", "key", "credential"),
    "named-credential": ("pass", "pwd", "secret", "token", "key", "credential", "cookie", "auth"),
}
"""The same, for those that take capital letters for small ones."""

_LETTERS = LONG_MARKS | MARKS | WORDS

RULES: tuple[str, ...] = tuple(_LETTERS)
"""The names under which something is refused or taken out, the specific before the general."""

# Where such letters alone say too little: what stands there as well. Compiled only when it is asked.
_NAMES = r"pass(?:w|phrase|code|(?![a-z]))|pwd|secret|token|key(?![a-rt-z])|credential"
_CLUES: Mapping[str, str] = {
    "discord-token": r"\.[\w-]{6}\.[\w-]{27}",
    "url-password": r"://[^\s/]*@",
    "password-assignment": _NAMES,
    "named-credential": rf"{_NAMES}|cookie|auth(?:orization|(?![a-z]))",
}
_LONG_WORD = re.compile(r"[\w-]{16}", re.ASCII)


class Hit(NamedTuple):
    """``rule``: one of RULES. ``path``: where, for example ``$.data.db.password`` or ``$.notes[0]``."""

    rule: str
    path: str


def find(value: Any, path: str) -> list[Hit]:
    """What looks like a credential in any JSON value that stands at ``path``: by the names of keys, by the texts, and in the
    keys as texts. Each rule once for each place, in the order of the value. No hit holds anything of the credential."""
    text = "\n".join(_texts(value))
    rules = suspected(text) if text else []
    hits: list[Hit] = load("checkpoint.secret_rules:hits")(value, path, rules) if rules else []
    return hits


def redact(text: str) -> str:
    """``text`` with ``[redacted: RULE]`` for each secret, and all else as it was. Where the beginning of a private key is
    cut off, everything up to its END line goes. ``find`` finds nothing in what is returned."""
    rules = suspected(text)
    redacted: str = load("checkpoint.secret_rules:redacted")(text) if rules else text
    return redacted


def suspected(text: str, among: Sequence[str] = RULES) -> list[str]:
    """The rules that ``text`` may match, in their order: no others do."""
    small = text.lower()
    long = _LONG_WORD.search(text) is not None
    return [rule for rule in among if (long or rule not in LONG_MARKS) and _is_suspected(text, small, rule)]


def _is_suspected(text: str, small: str, rule: str) -> bool:
    letters = small if rule in WORDS else text
    if not any(mark in letters for mark in _LETTERS[rule]):
        return False
    return rule not in _CLUES or re.search(_CLUES[rule], letters, re.ASCII) is not None


def _texts(value: Any) -> Iterable[str]:
    """Every text in ``value``, keys among them. Without recursion: how deeply it is nested is judged elsewhere."""
    left = [value]
    while left:
        item = left.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, Mapping):
            left += item
            left += item.values()
        elif isinstance(item, list | tuple):
            left += item
