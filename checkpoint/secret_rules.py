"""The forms of credentials, written from what their vendors publish; reached through ``_load.load`` where one is suspected.

Three kinds: tokens known by their shape, secrets known by what stands beside them (a header, a URL, ``password=``), and
values known by the name of their key. Every search takes linear time: what may be long is matched by one class of letters,
and nothing that has to follow it is looked for from each beginning anew.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import IntEnum
from functools import cache, lru_cache
from typing import Any, NamedTuple

from checkpoint.secrets import WORDS, Hit, suspected


class Span(NamedTuple):
    """``text[start:end]`` is a secret."""

    start: int
    end: int
    rule: str


def hits(value: Any, path: str, rules: Sequence[str]) -> list[Hit]:
    """``secrets.find``; ``rules``: those that are suspected anywhere in ``value``."""
    found: dict[Hit, None] = {}  # a set that keeps its order
    left: list[tuple[Any, str, Weight]] = [(value, path, Weight.NONE)]
    while left:
        item, place, weight = left.pop()
        if isinstance(item, str):
            known, whole = _rules_of(item, rules)
            found |= dict.fromkeys(Hit(rule, place) for rule in known)
            if not whole and _is_credential(item, weight):
                found[Hit("named-credential", place)] = None
        elif isinstance(item, Mapping):
            fields = []
            titles = [weight_of(item[key]) for key in ("name", "Name", "key", "Key") if isinstance(item.get(key), str)]
            for key, field in item.items():
                name = str(key)
                below = f"{place}.{redacted(name)}"
                found |= dict.fromkeys(Hit(rule, below) for rule in _rules_of(name, rules)[0])
                says = max(titles, default=Weight.NONE) if name in ("value", "Value") else weight_of(name)
                fields.append((field, below, says))
            left += reversed(fields)
        elif isinstance(item, list | tuple):
            # A command in pieces: what follows "--password" is one.
            weights = [weight, *(max(weight, _weight_of_option(word)) for word in item)]
            left += reversed([(word, f"{place}[{n}]", weights[n]) for n, word in enumerate(item)])
    return list(found)


# Colours, as a terminal or a quoted text has them: their last letter is no part of the word behind them.
_COLOUR = re.compile(r"(?:\x1b|\\u001b|\\x1b|\\033|\\e)\[[0-?]*[ -/]*[@-~]")


def _plain(text: str) -> str:
    """``text`` with spaces in place of colours, so that places in it are places in ``text``."""
    return _COLOUR.sub(lambda match: " " * len(match[0]), text)


def _rules_of(text: str, rules: Sequence[str]) -> tuple[list[str], bool]:
    """The rules by which ``text`` holds secrets, but for those that only say less of the same letters: ``TOKEN=ghp_...`` is
    a token of GitHub. And whether one secret is all of it."""
    text = _plain(text)
    found: list[str] = []
    places: set[tuple[int, int]] = set()
    for rule in suspected(text, rules):
        new = next((place for place in _SEARCHES[rule](text) if place not in places), None)
        if new:
            found.append(rule)
            places |= {new} if rule in WORDS else {*_SEARCHES[rule](text)}
    return found, any(not text[:start].strip() and not text[end:].strip() for start, end in places)


def redacted(text: str) -> str:
    """``secrets.redact``."""
    for _ in range(8):  # a secret that is gone can lay bare the end of another one
        spans = _merged(_spans(text))
        if not spans:
            break
        pieces, done = [], 0
        for start, end, rule in spans:
            pieces += [text[done:start], f"[redacted: {rule}]"]
            done = end
        text = "".join(pieces) + text[done:]
    return text


def _spans(text: str) -> list[Span]:
    """All secrets in ``text`` by their places, at one place the wider and then the more specific first. They may overlap."""
    text = _plain(text)
    spans = [Span(start, end, rule) for rule in suspected(text) for start, end in _SEARCHES[rule](text)]
    return sorted(spans, key=lambda span: (span.start, -span.end))


def _merged(spans: list[Span]) -> list[Span]:
    """Apart from each other, each under the rule that found its beginning."""
    merged: list[Span] = []
    for span in spans:
        if merged and span.start < merged[-1].end:
            merged[-1] = merged[-1]._replace(end=max(span.end, merged[-1].end))
        else:
            merged.append(span)
    return merged


# --- tokens, by their shape --------------------------------------------------------------------------------------------

# "\<" stands for: not in the middle of a word, of which the "n" of "\n" in a quoted text is no part.
_APART = r"(?:(?<![A-Za-z0-9])|(?<=\\[nrt]))"

_SHAPES: Mapping[str, str] = {
    "aws-access-key": r"(?<![A-Z0-9])(?:ABIA|ACCA|AKIA|ASIA)[A-Z2-7]{16}(?![A-Z0-9])",
    "alibaba-access-key": r"(?<![A-Za-z0-9])LTAI[A-Za-z0-9]{16,20}(?![A-Za-z0-9])",
    "google-api-key": r"AIza[\w-]{35}(?![\w-])",
    "google-oauth": r"GOCSPX-[\w-]{24,}|ya29\.[\w-]{20,}|(?<![\w/])1//0[\w-]{40,}",
    "azure-storage-key": r"(?:Account|SharedAccess)Key=(?P<secret>[A-Za-z0-9+/]{40,}={0,2})",
    "azure-client-secret": r"(?<![\w~.-])[\w~.-]{3}[0-9]Q~[\w~.-]{31,34}(?![\w~-])",
    "azure-devops-token": r"(?<![A-Za-z0-9])[A-Za-z0-9]{76}AZDO[A-Za-z0-9]{4}(?![A-Za-z0-9])",
    "infrastructure-token": (
        r"do[opr]_v1_[0-9a-f]{64}|HRKU-[\w-]{36,}|\<dapi[0-9a-f]{32}(?:-\d)?(?![A-Za-z0-9])"
        r"|(?<![A-Za-z0-9])[A-Za-z0-9]{14}\.atlasv1\.[\w-]{60,}|\<pul-[0-9a-f]{40}|pscale_(?:tkn|pw|oauth)_[\w.-]{32,}"
        r"|\<(?:sbp_[0-9a-z]{40}|sb_secret_[\w-]{20,})|\<(?:fm[12]_[\w+/=-]{50,}|fo1_[\w-]{40,})|\<tskey-[a-z]+-[\w-]{16,}"
    ),
    "github-token": r"gh[oprsu]_[\w.-]{35,}[A-Za-z0-9]|github_pat_\w{40,}",
    "gitlab-token": (
        r"\<gl(?:pat|oas|dt|rt|rtr|cbt|ptt|ft|imt|agent|soat|wt|ffct)-[\w-]{20,}(?:\.[\w-]+)*|\<GR1348941[\w-]{20,}"
    ),
    "atlassian-token": r"AT[AC]TT3[\w=-]{50,}|(?<![A-Za-z0-9])ATBB[A-Za-z0-9]{32}(?![A-Za-z0-9])",
    "npm-token": r"npm_[A-Za-z0-9]{36,}",
    "pypi-token": r"pypi-Ag[\w-]{50,}",
    "registry-token": (
        r"dckr_[po]at_[\w-]{20,}|rubygems_[0-9a-f]{48}|CLOJARS_[0-9a-f]{60}"
        r"|(?<![A-Za-z0-9+/])(?:cio[A-Za-z0-9]{32}|oy2[a-z0-9]{43}|AKC[A-Za-z0-9]{69}|cmVmd[A-Za-z0-9]{59})(?![A-Za-z0-9+/=])"
    ),
    "ci-token": r"CCIPAT_\w{40,}|\<(?:bkua|sq[apu])_[0-9a-z]{40}(?![A-Za-z0-9])",
    "secret-store-token": r"\<hv[brs]\.[\w-]{24,}|\<dp\.(?:pt|st|ct|sa|scim|audit)\.[\w.-]{40,}|\<ops_eyJ[\w+/=-]{100,}",
    "slack-token": r"\<(?:xox[a-z]|xapp|xwfp)(?:\.xox[a-z])?-[\w-]{20,}",
    "chat-webhook": (
        r"hooks\.slack(?:-gov)?\.com/(?P<slack>(?:services|workflows|triggers)/[\w/-]{20,})"
        r"|discord(?:app)?\.com/api/(?:v\d+/)?(?P<discord>webhooks/\d{17,20}/[\w-]{60,})"
        r"|\.office(?:365)?\.com/(?P<teams>webhook(?:b2)?/[\w@/-]{60,})|hooks\.zapier\.com/(?P<zapier>hooks/catch/[\w/]{12,})"
    ),
    "discord-token": r"(?<![\w.-])[MNO][\w-]{22,30}\.[\w-]{6}\.[\w-]{27,45}(?![\w.-])",
    "telegram-token": r"(?<!\d)\d{8,10}:AA[\w-]{30,40}(?![\w-])",
    "twilio-key": r"\<SK[0-9a-f]{32}(?![A-Za-z0-9])",
    "sendgrid-key": r"\<SG\.[\w-]{20,24}\.[\w-]{39,50}(?![\w-])",
    "mail-service-key": (
        r"(?<![\w-])key-[0-9a-f]{32}(?![\w-])|(?<![A-Za-z0-9])[0-9a-f]{32}-us\d{1,2}(?![\w-])|xkeysib-[0-9a-f]{64}-\w{16}"
    ),
    "stripe-key": r"\<[rs]k_(?:live|test)_(?=[A-Za-z]{0,64}\d)[A-Za-z0-9]{16,}|\<whsec_[A-Za-z0-9+/]{24,}={0,2}",
    "shop-token": r"\<sq0[a-z]{3}-[\w-]{22,}|shp(?:at|ca|pa|ss)_[0-9a-fA-F]{32}|\<EZ[AT]K[A-Za-z0-9]{54}",
    "anthropic-key": r"sk-ant-[a-z0-9]+-[\w-]{40,}",
    "openai-key": (
        r"\<sk-(?:proj|svcacct|admin|or-v1)-(?=[A-Za-z_-]{0,64}\d)[\w-]{40,}"
        r"|\<sk-(?=[A-Za-z]{0,64}\d)[A-Za-z0-9]{32,}(?![\w-])"
    ),
    "huggingface-token": r"\<(?:hf|api_org)_[A-Za-z0-9]{30,}",
    "model-service-key": (
        r"\<(?:gsk_[A-Za-z0-9]{40,}|xai-[\w-]{60,}|pplx-[A-Za-z0-9]{40,}|r8_[A-Za-z0-9]{37}|nvapi-[\w-]{50,}"
        r"|lsv2_[a-z]{2}_[0-9a-f]{32}_\w+|pcsk_\w{40,}|tvly-[\w-]{30,}|jina_\w{40,}|sk_[0-9a-f]{48})"
    ),
    "work-tool-token": (
        r"\<(?:lin_(?:api|oauth)_[A-Za-z0-9]{32,}|(?:ntn|secret)_[A-Za-z0-9]{43,}|fig[dou]_[\w-]{40,}"
        r"|PMAK-[0-9a-f]{24}-[0-9a-f]{34}|CFPAT-[\w-]{40,}|pnu_[A-Za-z0-9]{36})"
    ),
    "monitoring-token": (
        r"\<(?:glsa_\w{32,}|glc_[A-Za-z0-9+/]{32,}={0,2}|NR(?:AA|AK|II|IQ|RA)-[\w-]{24,}|[0-9a-f]{36}NRAL"
        r"|eyJrIjoi[A-Za-z0-9+/]{60,}={0,2}|sntry[su]_[\w+/=-]{60,}|sgp_\w{40,}|phx_[\w-]{40,}|dt0[a-z]\d\d\.[A-Z2-7]{24}\.[A-Z2-7]{64})"
    ),
    "age-key": r"AGE-SECRET-KEY-1[0-9A-Z]{58}",
    # Two parts more, or four of which the first may be empty; unsigned ones prove nothing to anybody.
    "jwt": r"(?:(?<![\w-])|(?<=\\[nrt]))eyJ[\w-]{10,}\.(?:[\w-]*\.){1,3}[\w-]{16,}",
    "signed-url": (
        r"(?:[?&;]|u0026)sig=(?P<azure>[A-Za-z0-9%+/_-]{40,}={0,2})|X-(?:Amz|Goog)-Signature=(?P<signature>[0-9a-f]{64,})"
    ),
}


@cache
def _shape(rule: str) -> re.Pattern[str]:
    return re.compile(_SHAPES[rule].replace(r"\<", _APART), re.ASCII)


def _shaped(rule: str) -> Callable[[str], Iterator[tuple[int, int]]]:
    return lambda text: (match.span(match.lastgroup or 0) for match in _shape(rule).finditer(text))


# --- private keys ------------------------------------------------------------------------------------------------------

_ARMOUR = re.compile(r"-{4,5} ?(BEGIN|END) [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)? ?-{4,5}")
_KEY_MATERIAL = re.compile(r"[A-Za-z0-9+/]{16}")
_LAST_LINE = re.compile(r"[A-Za-z0-9+/=](?:\r?\n|(?:\\r)?\\n)[ \t]*\Z")
# "-----BEGIN PRIVATE", "-----BEGIN RSA PRIVATE" and so on, as they stand in the configuration of a cluster.
_IN_BASE64 = re.compile(
    r"LS0tLS1CRUdJTi(?:BQUklWQVRF|BSU0EgUFJJVkFU|BFQyBQUklWQVRF|BPUEVOU1NIIFBSSVZBV|BFTkNSWVBURUQgUFJJVkFU)[A-Za-z0-9+/]{20,}={0,2}"
)
_PUTTY = re.compile(r"PuTTY-User-Key-File-\d")
_PUTTY_END = re.compile(r"Private-MAC: ?\w+")


def _private_keys(text: str) -> Iterator[tuple[int, int]]:
    """From BEGIN to END, either of which may be cut off. One with no key beside it is talk about keys."""
    begun: int | None = None
    done = 0
    for mark in _ARMOUR.finditer(text):
        if mark[1] == "BEGIN":
            begun = mark.start() if begun is None else begun
            continue
        start = done if begun is None else begun
        cut = begun is None and _LAST_LINE.search(text[max(done, mark.start() - 32) : mark.start()])
        if cut or _KEY_MATERIAL.search(text, start, mark.start()):
            yield start, mark.end()
        begun, done = None, mark.end()
    if begun is not None and _KEY_MATERIAL.search(text, begun):
        yield begun, len(text)
    yield from (match.span() for match in _IN_BASE64.finditer(text))
    place = 0
    while putty := _PUTTY.search(text, place):
        end = _PUTTY_END.search(text, putty.end())
        place = end.end() if end else len(text)
        yield putty.start(), place


# --- names that say what a value is ------------------------------------------------------------------------------------


class Weight(IntEnum):
    """What the name of a value says of it. SURE: a credential whatever it is, as a password may be any word. SOME: one if
    it looks drawn by lot, as ``token`` also names a number."""

    NONE = 0
    SOME = 1
    SURE = 2


_WORD_BREAKS = re.compile(r"[_\-. ]+|(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_SURE = re.compile(
    r"""
    (?: passwords? | passwds? | passphrases? | passcodes? | pwds? | secret | secret_key_base
      | (?:\A|_) (?: access | account | api | app | application | auth | client | consumer | encryption | master | preshared
                   | private | secret | service | shared | signing | ssh | storage | subscription | webhook ) _?keys?
      | (?:\A|_) (?: access | api | app | auth | bearer | bot | deploy | id | jwt | oauth | personal | private | refresh
                   | secret | security | service | session | user | vault | web ) _?tokens?
      | (?:\A|_) (?: admin | app | auth | basic | database | db | email | ftp | http | key | keystore | ldap | login | mail
                   | mongo | my | mysql | pg | postgres | proxy | rabbitmq | redis | root | smtp | ssh | store | sudo
                   | user ) _?pass
    ) [0-9]* \Z
    """,
    re.VERBOSE,
)
_SOME = re.compile(r"(?:tokens?|secrets|credentials?|cookies?|(?:\A|_)auth(?:orization)?)[0-9]*\Z")
_NEVER = re.compile(
    r"""
    (?:\A|_) (?: bos | cancel | cancellation | continuation | continue | cursor | eos | fencing | idempotency | last | lease
               | mask | max | min | next | pad | page | pagination | prev | previous | resume | start | stop | sync | unk
             ) _?tokens? \Z
    """,
    re.VERBOSE,
)
# What is said of a credential or done about it: "has_password", a step "rotate-secret".
_SAID = re.compile(
    r"""
    (?: allow | can | change | check | create | delete | fetch | forgot | generate | get | has | hide | is | needs | no | read
      | requires? | reset | revoke | rotate | send | show | skip | test | update | uses? | validate | verify | with | without
    ) _
    """,
    re.VERBOSE,
)


def weight_of(name: str) -> Weight:
    """What the name of a field, variable, header or option says of its value; the last words decide."""
    return _weight_of_end(name[-100:])


@lru_cache(maxsize=1024)
def _weight_of_end(name: str) -> Weight:
    plain = "_".join(word.lower() for word in _WORD_BREAKS.split(name) if word)
    if _SURE.search(plain):
        return Weight.SOME if _SAID.match(plain) else Weight.SURE
    return Weight.SOME if _SOME.search(plain) and not _NEVER.search(plain) else Weight.NONE


def _weight_of_option(word: Any) -> Weight:
    return weight_of(word) if isinstance(word, str) and word.startswith("--") else Weight.NONE


# --- values that are none ----------------------------------------------------------------------------------------------

_STANDS_FOR = re.compile(
    r"""
      \$(?: [A-Z_][A-Z0-9_]* | [A-Za-z_]+ | [0-9] | [({].* )   # a variable or a command of a shell
    | %(?: [A-Za-z_]+% | \(\w+\)[sd] | [sdrv] )              # of another one, or of a format
    | <.*> | [{].*[}] | [(].*[)] | \[[A-Za-z].*\] | \#\{.* | &(?:lt|\#x3C);.*    # of a template
    | (?i: \[redacted ).*                                    # what we put there
    | \[?[*xX.\u2022\u2026#?_-]{3,}\]? | [\W_]{1,3}          # made unreadable, or what stands between two texts
    | (?i: true | false | yes | no | on | off | none | null | nil | nan | n/a | undefined | unset | set | empty | missing
         | required | optional | redacted | hidden | masked | removed | changed | unchanged | unknown | prompt | stdin )
    | (?i: (?:your|my|some|the) [\w\ -]{0,64} (?:password|passwd|secret|token|key) [\w\ -]{0,64} )
    | (?i: vault | env | file | op | ssm | sm | secrets? | keyring | keychain | arn | kms | sops | ref | pass(?=:/) ) [:/].*
    | (?i: !(?:vault|secret|ref|env|getatt|sub)\b | enc\[ ).*
    | @[\w./~-]+ | [A-Za-z]:\\.*                             # a file that holds it
    """,
    re.VERBOSE | re.DOTALL | re.ASCII,
)
_PATH = re.compile(r"(?:~|\.{1,2})?(?:/[\w.@ -]*)+", re.ASCII)
_DRAWN = re.compile(r"(?=[^0-9]*[0-9])(?=[^A-Za-z]*[A-Za-z])[\w+/=.~:%|-]{16,}", re.ASCII)
_MIXED = re.compile(r"(?=[^0-9]*[0-9])(?=[^a-z]*[a-z])(?=[^A-Z]*[A-Z]).{16,}", re.DOTALL)


def _stands_for(value: str) -> bool:
    """No secret: a placeholder, a reference to where it is kept, or nothing at all."""
    if not value or _STANDS_FOR.fullmatch(value):
        return True
    # A key in base64 may begin with a slash too.
    return bool(_PATH.fullmatch(value)) and not any(_MIXED.fullmatch(part) for part in value.split("/"))


def _is_drawn(value: str) -> bool:
    return any(_DRAWN.fullmatch(part) and "://" not in part and not _stands_for(part) for part in re.split(r"[\s,;]+", value))


def _is_credential(value: str, weight: Weight) -> bool:
    """Whether ``value`` is one, under a name of that weight."""
    value = value.strip()
    return not _stands_for(value) and (weight is Weight.SURE or (weight is Weight.SOME and _is_drawn(value)))


# --- names and values in a text ----------------------------------------------------------------------------------------

_NAME_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-."
_ASSIGNED = re.compile(
    r"""
    (?P<word> (?: pass(?:word|wd|phrase|code)? | pwd | secret | token | key(?:_base)? | credential ) s?[0-9]{0,2} )
    (?: \\{0,2} (?:["'`]\]?)? [ \t]{0,16}+ (?: := | => | ={1,3}+ | :(?![:/]) ) [ \t]{0,16}+   # name = value
      | \\{0,2}["'`]?,? \s{1,32}+ \\{0,2}["'`]?value\\{0,2}["'`]? [ \t]{0,4}+ [:=] [ \t]{0,4}+  # name: name, value: value
      | (?P<option> [ \t]{1,4}+ (?=[^ \t]) | ["'`],[ \t]{1,4}+ (?=["'`]) )                    # --name value
      | (?P<element> > )                                                                      # <name>value
    )
    (?! (?:[bru]{1,2}(?=["']))? \\{0,2}["'`]? \[redacted:\  )
    """,
    re.VERBOSE | re.IGNORECASE | re.ASCII,
)
_LOGIN = re.compile(r"\blogin\s+\S{1,64}\s+\Z")  # ~/.netrc
_QUOTE = re.compile(r"""(?:[bru]{1,2}(?=["']))?(?P<quote>\\{0,2}["'`])""", re.IGNORECASE)
_LIST = re.compile(r"""\[\s{0,64}(?=\\{0,2}["'`])""")
_NEXT = re.compile(r"""\\{0,2}["'`]\s{0,64},\s{0,64}(?=\\{0,2}["'`])""")
# A separator belongs to the value unless it parts it from another field or from the rest of the line.
_UNQUOTED = re.compile(
    r"""(?: [^\s"'`,;&<\\] | [,;&](?![\s"'`]|\Z|[\w\ .-]{1,32}[=:]) | <(?!/) | \\(?!["'`nrt\\]) )+""", re.VERBOSE | re.ASCII
)
_CODE = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*(?P<call>[\[\]()].*)?", re.ASCII | re.DOTALL)
_OPENED = re.compile(r"[<(\[{][A-Za-z_][\w-]*", re.ASCII)  # "<your password>"
_PLAIN_WORD = re.compile(r"[A-Za-z_]+(?:['-][A-Za-z]+)*[.,;:!?]*")


class _Value(NamedTuple):
    """``text[start:end]`` is a value; what comes after it begins at ``place``."""

    text: str
    start: int
    end: int
    quoted: bool
    place: int


def _assignments(text: str) -> Iterator[tuple[int, int]]:
    """Values beside a name that says what they are: ``PGPASSWORD=...``, ``"api_key": "..."``, ``--client-secret ...``."""
    place = 0
    while match := _ASSIGNED.search(text, place):
        place = match.end()
        name, before = _name(text, match)
        if (
            (match["option"] and not name.startswith("-") and not _is_login(text, match))
            or (match["element"] and before != "<")
            or (before == ":" and match[0].endswith(":"))  # arn:aws:secretsmanager:...:secret:db
        ):
            continue
        weight = weight_of(name)
        if weight is Weight.NONE:
            continue
        listed = _LIST.match(text, place)
        found = _value(text, listed.end() if listed else place)
        while found.quoted:
            if len(found.text) > 1 and _is_credential(found.text, weight):  # accesskey="p"
                yield found.start, found.end
            more = _NEXT.match(text, found.end) if listed else None
            if not more:
                break
            found = _value(text, more.end())
        place = found.place
        if not found.quoted and _is_credential(found.text, weight) and not _is_code_or_prose(found, name, text):
            yield found.start, found.end


def _name(text: str, match: re.Match[str]) -> tuple[str, str]:
    """The whole name that ends with the word matched, and the letter before it."""
    start = match.start()
    ahead = text[max(0, start - 64) : start]
    stem = ahead[len(ahead.rstrip(_NAME_LETTERS)) :]
    before = ahead[: len(ahead) - len(stem)][-1:]
    if before == "\\" and stem[:1] in ("n", "r", "t"):
        stem = stem[1:]  # a line break in a quoted text
    return stem + match["word"], before


def _is_login(text: str, match: re.Match[str]) -> bool:
    return match["word"] == "password" and _LOGIN.search(text[max(0, match.start() - 100) : match.start()]) is not None


def _value(text: str, start: int) -> _Value:
    opening = _QUOTE.match(text, start)
    if opening:
        quote, inside = opening["quote"], opening.end()
        end = text.find(quote, inside)
        while len(quote) == 1 and end > inside and text[end - 1] == "\\" and text[end - 2] != "\\":
            end = text.find(quote, end + 1)
        if end >= 0 and text.find("\n", inside, end) < 0:
            return _Value(text[inside:end], inside, end, True, end)
        start = inside
    unquoted = _UNQUOTED.match(text, start)
    if not unquoted:
        return _Value("", start, start, False, start)
    value = unquoted[0]
    for opened, closed in ("()", "[]", "{}"):
        if value.endswith(closed):
            surplus = value.count(closed) - value.count(opened)
            closing = len(value) - len(value.rstrip(closed))
            value = value[: len(value) - max(0, min(surplus, closing))]
    return _Value(value, start, start + len(value), False, unquoted.end())


def _is_code_or_prose(value: _Value, name: str, text: str) -> bool:
    """What only reads like an assignment: ``connect(password=password)``, "the password: it was changed"."""
    if _OPENED.fullmatch(value.text):
        return True
    word = value.text.rstrip(".,;:!?")
    if word.isdecimal() and len(word) < 4:
        return True
    code = _CODE.fullmatch(word)
    if code and (code["call"] or ("." in word and not name.isupper())):
        return True
    if re.search(r"[0-9]", word):
        return False
    if code and weight_of(word) is not Weight.NONE:
        return True
    # After a space or a colon a plain word is taken for one: too much that is written down reads so.
    if text[value.start - 1] not in " \t:" or not _PLAIN_WORD.fullmatch(word):
        return False
    return "-" not in word or bool(text[value.place : value.place + 80].partition("\n")[0].strip())


# --- headers, URLs, commands -------------------------------------------------------------------------------------------

_AUTHORIZATION = re.compile(
    r"""
      authorization["'\\]{0,4} [ \t]{0,4} [:=] [ \t]{0,4} ["'\\]{0,4}
      (?P<scheme>[a-z][\w-]{0,30}[ \t]{1,4})? (?P<secret>[^\s"'\\,;]+)
    | \b bearer [ \t]{1,4} (?P<bare>[\w.~+/=-]{16,})
    """,
    re.VERBOSE | re.IGNORECASE | re.ASCII,
)
_COOKIES = re.compile(r"""\bcookie["'\\]{0,4}[ \t]{0,4}[:=][ \t]{0,4}["'\\]{0,4}(?P<line>[^\n"']+)""", re.IGNORECASE | re.ASCII)
_COOKIE = re.compile(r"(?P<name>[^\s=;]+)=(?P<secret>[^\s;,]+)")
_SESSION = re.compile(r"sess|sid|auth|token|jwt|login|remember", re.IGNORECASE)
_USERINFO = re.compile(r"""://[^\s/?#@:"'<>`\\]{0,256}:(?P<secret>[^\s/"'`\\]{1,1024})@""")
_USER = re.compile(r"""[ \t](?:-u|--user|--proxy-user)[ =]?["']?[^\s:"']{1,64}:(?P<secret>[^\s"'`]+)""")
_SQL = re.compile(
    r"(?:(?i:\b(?:user|to)\s{1,8}\S{1,80}\s{1,8}identified\s{1,8}(?:with\s{1,8}\S{1,40}\s{1,8})?(?:by|as))|\bPASSWORD)"
    r"\s{1,8}'(?P<secret>[^'\n]+)'"
)


def _authorizations(text: str) -> Iterator[tuple[int, int]]:
    for match in _AUTHORIZATION.finditer(text):
        value = match["secret"] or match["bare"]
        plain = len(value) < 8 or _PLAIN_WORD.fullmatch(value) or _stands_for(value)
        if not plain if match["scheme"] else _is_drawn(value):
            yield match.span("secret" if match["secret"] else "bare")


def _cookies(text: str) -> Iterator[tuple[int, int]]:
    for header in _COOKIES.finditer(text):
        for match in _COOKIE.finditer(text, *header.span("line")):
            if _is_drawn(match["secret"]) and (_SESSION.search(match["name"]) or _MIXED.fullmatch(match["secret"])):
                yield match.span("secret")


def _curl_users(text: str) -> Iterator[tuple[int, int]]:
    """Elsewhere ``--user 1000:1000`` names a user and a group."""
    for match in _USER.finditer(text):
        line = text[max(0, match.start() - 400) : match.start()].rpartition("\n")[2]
        if "curl" in line and not _stands_for(match["secret"]):
            yield match.span("secret")


def _captured(pattern: re.Pattern[str]) -> Callable[[str], Iterator[tuple[int, int]]]:
    return lambda text: (match.span("secret") for match in pattern.finditer(text) if not _stands_for(match["secret"]))


_SEARCHES: Mapping[str, Callable[[str], Iterator[tuple[int, int]]]] = {rule: _shaped(rule) for rule in _SHAPES} | {
    "private-key": _private_keys,
    "url-password": _captured(_USERINFO),
    "sql-password": _captured(_SQL),
    "basic-auth-option": _curl_users,
    "authorization-header": _authorizations,
    "session-cookie": _cookies,
    "password-assignment": _assignments,
    "named-credential": lambda text: iter(()),  # goes by the names of keys: a text has none
}
