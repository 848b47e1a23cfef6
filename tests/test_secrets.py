"""What looks like a credential: each sample by itself, what redaction leaves, and that no text takes long or breaks it."""

import json
import random
import re
import subprocess
import sys
import time
from typing import Any

import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from secret_samples import BODY, HUNTER, NEGATIVES, POSITIVES, PRIVATE, Sample, drawn, pem

from checkpoint import secret_rules, secrets
from checkpoint.secret_rules import Weight, weight_of
from checkpoint.secrets import RULES, Hit, find, redact

positives = pytest.mark.parametrize("sample", POSITIVES, ids=lambda sample: sample.name)
negatives = pytest.mark.parametrize("sample", NEGATIVES, ids=lambda sample: sample.name)
every = pytest.mark.parametrize("sample", POSITIVES + NEGATIVES, ids=lambda sample: sample.name)


def rules(value: Any) -> set[str]:
    return {hit.rule for hit in find(value, "$")}


def without_prefilter(text: str) -> set[str]:
    return {rule for rule in RULES if next(secret_rules._SEARCHES[rule](secret_rules._plain(text)), None)}


# --- the samples -------------------------------------------------------------------------------------------------------


def test_there_are_samples_of_every_rule() -> None:
    assert {sample.rule for sample in POSITIVES} == set(RULES)
    assert len(POSITIVES) >= 35
    assert len(NEGATIVES) >= 25
    names = [sample.name for sample in POSITIVES + NEGATIVES]
    assert len(names) == len(set(names))


@positives
def test_a_credential_is_found_under_its_rule(sample: Sample) -> None:
    hits = find(sample.value, "$.data")
    assert {hit.rule for hit in hits} == {sample.rule}
    assert all(hit.path.startswith("$.data") for hit in hits)
    assert sample.secret not in repr(hits)


@negatives
def test_everyday_values_pass(sample: Sample) -> None:
    assert find(sample.value, "$") == []
    assert redact(sample.text) == sample.text


@positives
def test_nothing_of_it_is_left_in_output(sample: Sample) -> None:
    around = f"before\n{sample.text}\nafter"
    left = redact(around)
    assert sample.secret not in left
    assert left.startswith("before\n")
    assert "[redacted: " in left
    assert redact(left) == left
    assert find(left, "$") == []


@pytest.mark.parametrize(
    "sample",
    [sample for sample in POSITIVES if isinstance(sample.value, str) and sample.rule != "private-key"],
    ids=lambda sample: sample.name,
)
def test_all_else_is_kept_byte_for_byte(sample: Sample) -> None:
    assert redact(f"\x1b[1m{sample.value}\r\nÄ\x00") == f"\x1b[1m{sample.value}\r\nÄ\x00".replace(
        sample.secret, f"[redacted: {sample.rule}]"
    )


@every
def test_the_prefilter_loses_nothing(sample: Sample) -> None:
    assert without_prefilter(sample.text) <= set(secrets.suspected(sample.text))


@pytest.mark.parametrize("rule", secret_rules._SHAPES)
def test_the_prefilter_loses_nothing_that_a_shape_matches(rule: str) -> None:
    @settings(max_examples=15)
    @given(st.from_regex(secret_rules._shape(rule)))
    def check(text: str) -> None:
        if next(secret_rules._SEARCHES[rule](text), None):
            assert rule in secrets.suspected(text)

    check()


def test_the_repository_itself_holds_none() -> None:
    """As a scanner run over it would say. The test above that redacts is what proves that the samples are some."""
    for name in ("tests/secret_samples.py", "docs/secrets.md", "scripts/measure-secrets"):
        assert find((ROOT / name).read_text(), "$") == [], name


# --- where it is -------------------------------------------------------------------------------------------------------


def test_a_hit_names_the_place_in_the_order_of_the_value() -> None:
    data = {
        "db": {"host": "db", "password": HUNTER},
        "notes": ["fine", f"password={HUNTER}"],
        "argv": ["x", "--password", HUNTER],
    }
    assert find(data, "$.data") == [
        Hit("named-credential", "$.data.db.password"),
        Hit("password-assignment", "$.data.notes[1]"),
        Hit("named-credential", "$.data.argv[2]"),
    ]


def test_a_key_that_is_a_secret_is_not_repeated_in_the_path() -> None:
    token = "gh" + "p_" + drawn("abc123", 36)
    assert find({token: {"password": HUNTER}}, "$") == [
        Hit("github-token", "$.[redacted: github-token]"),
        Hit("named-credential", "$.[redacted: github-token].password"),
    ]


def test_the_specific_rule_speaks_for_the_general_one() -> None:
    token = "gh" + "p_" + drawn("abc123", 36)
    assert rules({"token": token}) == rules(f"GH_TOKEN={token}") == rules(f"Authorization: Bearer {token}") == {"github-token"}
    assert rules(f"{token} and password={HUNTER}") == {"github-token", "password-assignment"}
    assert redact(f"GH_TOKEN={token}") == "GH_TOKEN=[redacted: github-token]"


@pytest.mark.parametrize(
    ("names", "weight"),
    [
        ("password DB_PASSWORD dbPassword PGPASSWORD user-password passwd Passphrase MYSQL_PWD passwords", Weight.SURE),
        ("secret clientSecret client_secret SECRET_KEY SECRET_KEY_BASE api_key apiKey APIKey x-api-key apikey", Weight.SURE),
        ("private_key access-key accessToken refresh_token sessionToken auth.token DB_PASS smtpPass storepass", Weight.SURE),
        (
            "token gh_token tokens secrets credentials cookie set-cookie Authorization auth has_password rotate-secret",
            Weight.SOME,
        ),
        ("key idempotency_key primary_key public_key cache-key keyboard pass bypass compass passenger author", Weight.NONE),
        ("next_page_token nextToken continuationToken fencing_token pad_token token_type tokenizer max_tokens", Weight.NONE),
        ("secret_name password_file token_path secret_ref key_id password_sha256 token_hash secretary", Weight.NONE),
    ],
)
def test_what_names_say(names: str, weight: Weight) -> None:
    assert {name: weight_of(name) for name in names.split()} == dict.fromkeys(names.split(), weight)


@pytest.mark.parametrize(
    "value", ["x", HUNTER, "correct horse", "/Ab3" + drawn("aB3+/", 36), "pa$$w0rd", "0", "[k9$x", "(a)b", "<3cats"]
)
def test_a_password_may_be_any_word(value: str) -> None:
    assert rules({"password": value}) == {"named-credential"}


def test_what_begins_inside_a_private_key_goes_up_to_its_end() -> None:
    text = pem(f"RSA {PRIVATE}", BODY)
    for cut in range(text.index("-----END") - 1):
        left = redact(f"{text[cut:]}the rest")
        assert not re.search(r"[A-Za-z0-9+/]{24}", left)
        assert left.endswith("]\nthe rest")


def test_two_private_keys_and_what_stands_between() -> None:
    key = pem(PRIVATE, BODY)
    assert redact(f"a\n{key}b\n{key}c") == "a\n[redacted: private-key]\nb\n[redacted: private-key]\nc"


# --- any text ----------------------------------------------------------------------------------------------------------

PIECES = st.one_of(
    st.sampled_from([sample.text for sample in POSITIVES + NEGATIVES]),
    st.sampled_from([sample.secret for sample in POSITIVES]),
    st.sampled_from(
        ["password", "token", "api_key", "--secret", "Authorization: Bearer ", "Cookie: sid=", "curl -u a:", "://a:"]
    ),
    st.sampled_from(
        [*"=:\"'`\\ \n\r\t,;&<>[]{}()@/.-_$%#!?*", "\x1b[1m", "\\n", '\\"', ": ", "[redacted: jwt]", "-----BEGIN "]
    ),
    st.text(max_size=8),
    st.text(alphabet="aB3_-./+=", max_size=40),
)


@given(st.lists(PIECES, max_size=12).map("".join))
def test_nothing_is_found_in_what_was_redacted(text: str) -> None:
    left = redact(text)
    assert find(left, "$") == []
    assert redact(left) == left
    assert without_prefilter(text) <= set(secrets.suspected(text))


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), PIECES),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.one_of(st.text(max_size=8), PIECES), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(JSON)
def test_any_value_can_be_searched(value: Any) -> None:
    hits = find(value, "$.data")
    assert len(hits) == len(set(hits))
    assert all(hit.rule in RULES and hit.path.startswith("$.data") for hit in hits)
    assert find(value, "$.data") == hits


@pytest.mark.parametrize(
    "text", ["\ud800", "\x00", f"\ud800password={HUNTER}\udfff\x00", "", " ", "\u2028", "=" * 99], ids=range(7)
)
def test_odd_texts(text: str) -> None:
    find([text, {text: text}], "$")
    assert HUNTER not in redact(text)


def test_any_depth() -> None:
    value: Any = {"password": HUNTER}
    for _ in range(64):
        value = [{"a": value}]
    assert [hit.rule for hit in find(value, "$")] == ["named-credential"]
    for _ in range(20_000):
        value = [value]
    assert len(find(value, "$")) == 1


# Units that made a search slow while it was written: where each beginning looks for the same far end.
LISTED = ["a", "=", "password=", " ", "eyJ"]
NASTY = [
    *("password='x' ", 'password="', 'password=["a", ', "--password ", "login a password ", "secret_", "token: ", "\\n", "{"),
    *("eyJaaaaaaaaaaaaa.", "eyJaaaaaaaaaaa-", "sk-proj-", "sk-ant-", "ghp_", "xoxb-", "://a:", "a://b:c", "curl -u ", "?sig="),
    *("Authorization: ", "bearer ", "cookie: a=", f"-----BEGIN {PRIVATE}-----", f"-----END {PRIVATE}-----", "1//0", "Q~"),
    "".join(mark for marks in (secrets.MARKS | secrets.LONG_MARKS | secrets.WORDS).values() for mark in marks),
]


def bounded(text: str, seconds: float) -> None:
    """What takes square time takes hours here."""
    began = time.process_time()
    assert find(redact(text), "$") == []
    find({text: [text]}, "$")
    assert time.process_time() - began < seconds


@pytest.mark.parametrize("unit", LISTED)
def test_four_mebibytes_in_one_line(unit: str) -> None:
    bounded(unit * (4 * 1024 * 1024 // len(unit)), 60)


@pytest.mark.parametrize("unit", NASTY, ids=range(len(NASTY)))
def test_half_a_mebibyte_of_what_is_hard(unit: str) -> None:
    bounded(unit * (512 * 1024 // len(unit)), 15)


def test_four_mebibytes_of_base64() -> None:
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    bounded("".join(random.Random(1).choices(letters, k=4 * 1024 * 1024)), 60)


# --- what it costs, and what is said of it -----------------------------------------------------------------------------


def test_the_hot_path_needs_the_standard_library_alone() -> None:
    code = (
        "import sys, json; from checkpoint import secrets\n"
        "secrets.find({'note': 'built 3 of 5', 'files': ['a/b.json'] * 9, 'sha256': 'ab' * 32}, '$')\n"
        "secrets.redact('all tests passed in 3.2s, see https://example.com/x')\n"
        "print(json.dumps(list(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"], capture_output=True
    )
    loaded = json.loads(done.stdout)
    assert "checkpoint.secrets" in loaded
    assert "checkpoint.secret_rules" not in loaded
    # What an editable install's hook brings in stands there before us, and is not ours.
    ours = [name for name in loaded if name.startswith("checkpoint")]
    assert set(ours) <= {"checkpoint", "checkpoint._load", "checkpoint.secrets"} | {name for name in ours if "." not in name}
    assert {"dataclasses", "subprocess", "socket", "logging", "urllib.request", "multiprocessing"} & set(loaded) == set()


def test_the_rules_load_nothing_but_the_standard_library() -> None:
    code = (
        "import sys; before = {name.partition('.')[0] for name in sys.modules}; import checkpoint.secret_rules\n"
        "print(*({name.partition('.')[0] for name in sys.modules} - before))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) - {"checkpoint"} <= sys.stdlib_module_names


def test_every_rule_is_documented() -> None:
    documented = re.findall(r"^\| `([a-z-]+)` \|", (ROOT / "docs" / "secrets.md").read_text(), re.MULTILINE)
    assert sorted(documented) == sorted(RULES)
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)+|jwt", rule) for rule in RULES)


def test_the_measurement_runs() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "measure-secrets", "--rounds", "1"], capture_output=True, text=True, check=True
    )
    assert re.search(r"^\| ours \| 100 % \| 100 % \| 0 \|", done.stdout, re.MULTILINE)
