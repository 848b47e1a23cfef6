"""Made-up credentials in the formats of their vendors, and everyday values that look like some.

No credential stands in this file: each is put together when it is imported, of a public prefix and letters drawn from a
seeded generator. So no scanner run over the repository fires, and nothing here was ever valid anywhere.
"""

import base64
import hashlib
import json
import random
import string
import uuid
import zlib
from typing import Any, NamedTuple


class Sample(NamedTuple):
    """A value as a caller would hand it over.

    ``value``: a text, or any other JSON value. ``secret``: the part that must survive nowhere, empty in a harmless sample.
    ``rule``: the name under which it is refused, empty likewise.
    """

    name: str
    value: Any
    secret: str = ""
    rule: str = ""

    @property
    def text(self) -> str:
        """As it would stand in the output of a program."""
        return self.value if isinstance(self.value, str) else json.dumps(self.value)


UPPER32 = string.ascii_uppercase + "234567"
LETTERS = string.ascii_letters
ALNUM = string.ascii_letters + string.digits
URLSAFE = ALNUM + "_-"
BASE64 = ALNUM + "+/"
HEX = "0123456789abcdef"


def drawn(alphabet: str, length: int, seed: str = "") -> str:
    """``length`` letters, the same at each run; ``seed`` tells two of one kind apart."""
    return "".join(random.Random(f"{alphabet}{length}{seed}").choices(alphabet, k=length))


def checked(prefix: str, seed: str = "") -> str:
    """A token of GitHub or npm: 30 letters and their CRC-32 in base 62, as those document it."""
    letters, check = drawn(ALNUM, 30, prefix + seed), ""
    left = zlib.crc32(letters.encode())
    for _ in range(6):
        left, digit = divmod(left, 62)
        check = (string.digits + string.ascii_uppercase + string.ascii_lowercase)[digit] + check
    return prefix + letters + check


def base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def pem(label: str, body: str, headers: str = "") -> str:
    """Armour around ``body``, broken into lines of 64."""
    lines = "\n".join(body[place : place + 64] for place in range(0, len(body), 64))
    return f"-----BEGIN {label}-----\n{headers}{lines}\n-----END {label}-----\n"


HUNTER = "hunter" + "2"
PHRASE = "correct-horse" + "-battery"
PRIVATE = "PRIVATE" + " KEY"
BODY = drawn(BASE64, 64 * 12)
ED25519 = base64.b64encode(bytes.fromhex("302e020100300506032b657004220420") + random.Random("ed25519").randbytes(32)).decode()
JWT = ".".join(
    [
        base64url(json.dumps({"alg": "HS256", "typ": "JWT"}).encode()),
        base64url(json.dumps({"sub": "1234567890", "name": "Ann", "iat": 1516239022}).encode()),
        drawn(URLSAFE, 43),
    ]
)
JWE = ".".join(
    [
        base64url(json.dumps({"alg": "dir", "enc": "A256GCM"}).encode()),
        "",
        drawn(URLSAFE, 16),
        drawn(URLSAFE, 60),
        drawn(URLSAFE, 22),
    ]
)
BASIC = base64.b64encode(f"ann:{PHRASE}".encode()).decode()
PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + random.Random("png").randbytes(900)).decode()


def token(name: str, rule: str, secret: str, around: str = "{}") -> Sample:
    return Sample(name, around.format(secret), secret, rule)


def block(name: str, label: str, *, body: str = BODY, headers: str = "") -> Sample:
    return Sample(name, f"wrote it\n{pem(label, body, headers)}done\n", body[:64], "private-key")


POSITIVES = (
    # --- tokens of vendors, known by their shape ---------------------------------------------------------------------
    token("aws-key-id", "aws-access-key", "AKIA" + drawn(UPPER32, 16), "deploying with {} now"),
    token("aws-temporary-key-id", "aws-access-key", "ASIA" + drawn(UPPER32, 16), "export AWS_ACCESS_KEY_ID={}"),
    token("github-classic", "github-token", checked("gh" + "p_"), "gh auth: {}"),
    token("github-oauth", "github-token", checked("gh" + "o_")),
    token("github-installation", "github-token", checked("gh" + "s_"), "x-access-token:{}"),
    token("github-fine-grained", "github-token", "github_" + "pat_" + drawn(ALNUM, 22) + "_" + drawn(ALNUM, 59)),
    token("gitlab-personal", "gitlab-token", "gl" + "pat-" + drawn(URLSAFE, 20), "PRIVATE-TOKEN: {}"),
    token("gitlab-personal-routable", "gitlab-token", "gl" + "pat-" + drawn(ALNUM, 27) + ".01." + drawn(HEX, 9)),
    token("gitlab-deploy", "gitlab-token", "gl" + "dt-" + drawn(ALNUM, 20)),
    token("gitlab-runner", "gitlab-token", "gl" + "rt-" + drawn(URLSAFE, 20), "registered {} as runner 7"),
    token(
        "slack-bot",
        "slack-token",
        "xox" + "b-" + drawn("123456789", 12) + "-" + drawn("123456789", 13) + "-" + drawn(ALNUM, 24),
    ),
    token("slack-user", "slack-token", "xox" + "p-" + "-".join([drawn("123456789", 12)] * 3) + "-" + drawn(HEX, 32)),
    token(
        "slack-app", "slack-token", "xapp" + "-1-A" + drawn(UPPER32, 10) + "-" + drawn("123456789", 13) + "-" + drawn(HEX, 64)
    ),
    token(
        "slack-webhook",
        "chat-webhook",
        "services/T" + drawn(UPPER32, 8) + "/B" + drawn(UPPER32, 10) + "/" + drawn(ALNUM, 24),
        "curl -d @- https://hooks.slack.com/" + "{}",
    ),
    token("stripe-live", "stripe-key", "sk_" + "live_" + drawn(ALNUM, 24)),
    token("stripe-live-long", "stripe-key", "sk_" + "live_51" + drawn(ALNUM, 97), "using {} for this run"),
    token("stripe-restricted", "stripe-key", "rk_" + "live_" + drawn(ALNUM, 24)),
    token("stripe-test", "stripe-key", "sk_" + "test_" + drawn(ALNUM, 24)),
    token("stripe-webhook", "stripe-key", "wh" + "sec_" + drawn(ALNUM, 32)),
    token("alibaba", "alibaba-access-key", "LT" + "AI" + drawn(ALNUM, 20)),
    token("azure-devops", "azure-devops-token", drawn(ALNUM, 76) + "AZ" + "DO" + drawn(ALNUM, 4), "git -c pat={} fetch"),
    token("buildkite", "ci-token", "bk" + "ua_" + drawn(HEX, 40)),
    token("groq", "model-service-key", "gs" + "k_" + drawn(ALNUM, 52)),
    token("bitbucket", "atlassian-token", "AT" + "BB" + drawn(ALNUM, 32), "https://x.test/?p={}"),
    token("kubernetes-secret", "private-key", base64.b64encode(pem(f"RSA {PRIVATE}", BODY).encode()).decode(), "tls.key: {}"),
    token("npm", "npm-token", checked("np" + "m_")),
    token("npmrc", "npm-token", checked("np" + "m_", "rc"), "//registry.example.com/:_authToken={}"),
    token("pypi", "pypi-token", "py" + "pi-AgEIcHlwaS5vcmc" + drawn(URLSAFE, 150), "uploading with {}"),
    token("google-api-key", "google-api-key", "AI" + "za" + drawn(URLSAFE, 35), "https://maps.example.com/js?key={}&v=3"),
    token("google-oauth-client-secret", "google-oauth", "GOC" + "SPX-" + drawn(URLSAFE, 28)),
    token("google-access-token", "google-oauth", "ya" + "29." + drawn(URLSAFE, 160)),
    token(
        "azure-storage",
        "azure-storage-key",
        drawn(BASE64, 86) + "==",
        "DefaultEndpointsProtocol=https;AccountName=logs;Account" + "Key={};EndpointSuffix=core.windows.net",
    ),
    token(
        "azure-service-bus",
        "azure-storage-key",
        drawn(BASE64, 43) + "=",
        "Endpoint=sb://bus.servicebus.windows.net/;SharedAccessKeyName=Root;SharedAccess" + "Key={}",
    ),
    token(
        "azure-signed-url",
        "signed-url",
        drawn(ALNUM, 40) + "%2B" + drawn(ALNUM, 2) + "%3D",
        "https://logs.blob.core.windows.net/c/a.log?sv=2024-11-04&sr=b&se=2026-01-01T00%3A00%3A00Z&sp=r&sig={}",
    ),
    token(
        "azure-client-secret",
        "azure-client-secret",
        drawn(ALNUM, 3) + "8" + "Q~" + drawn(URLSAFE + "~.", 34),
        "app password {} ok",
    ),
    token("openai-project", "openai-key", "sk" + "-proj-" + drawn(URLSAFE, 74) + "T3Blbk" + "FJ" + drawn(URLSAFE, 74)),
    token("openai-legacy", "openai-key", "sk" + "-" + drawn(ALNUM, 20) + "T3Blbk" + "FJ" + drawn(ALNUM, 20)),
    token(
        "openai-service-account", "openai-key", "sk" + "-svcacct-" + drawn(URLSAFE, 74) + "T3Blbk" + "FJ" + drawn(URLSAFE, 74)
    ),
    token("anthropic-api", "anthropic-key", "sk-" + "ant-api03-" + drawn(URLSAFE, 93) + "AA", "client made with {}"),
    token("anthropic-oauth", "anthropic-key", "sk-" + "ant-oat01-" + drawn(URLSAFE, 93) + "AA"),
    token("huggingface", "huggingface-token", "h" + "f_" + drawn(LETTERS, 34), "huggingface-cli login, {}"),
    token("twilio-api-key", "twilio-key", "S" + "K" + drawn(HEX, 32)),
    token("sendgrid", "sendgrid-key", "S" + "G." + drawn(URLSAFE, 22) + "." + drawn(URLSAFE, 43)),
    token("telegram", "telegram-token", drawn("123456789", 10) + ":" + "AA" + drawn(URLSAFE, 33), "bot is {}"),
    token(
        "telegram-url",
        "telegram-token",
        drawn("123456789", 9) + ":" + "AA" + drawn(URLSAFE, 33, "url"),
        "GET https://api.telegram.org/bot{}/getMe",
    ),
    token("digitalocean", "infrastructure-token", "dop" + "_v1_" + drawn(HEX, 64)),
    token("docker-hub", "registry-token", "dckr" + "_pat_" + drawn(URLSAFE, 27)),
    token("vault", "secret-store-token", "hv" + "s." + drawn(URLSAFE, 95)),
    token("databricks", "infrastructure-token", "da" + "pi" + drawn(HEX, 32)),
    token("shopify", "shop-token", "shp" + "at_" + drawn(HEX, 32)),
    token("atlassian", "atlassian-token", "ATAT" + "T3xFfGF0" + drawn(URLSAFE, 170) + "=" + drawn("0123456789ABCDEF", 8)),
    token("mailgun", "mail-service-key", "ke" + "y-" + drawn(HEX, 32), "api:{}"),
    token("mailchimp", "mail-service-key", drawn(HEX, 32, "chimp") + "-us" + "12"),
    token("discord-bot", "discord-token", "M" + drawn(ALNUM, 25) + "." + drawn(URLSAFE, 6) + "." + drawn(URLSAFE, 38)),
    token(
        "discord-webhook",
        "chat-webhook",
        "webhooks/" + drawn("123456789", 18) + "/" + drawn(URLSAFE, 68),
        "https://discord.com/api/" + "{}",
    ),
    token("linear", "work-tool-token", "lin" + "_api_" + drawn(ALNUM, 40)),
    token("grafana", "monitoring-token", "gl" + "sa_" + drawn(ALNUM, 32) + "_" + drawn(HEX, 8)),
    token("age", "age-key", "AGE-" + "SECRET-KEY-1" + drawn("QPZRY9X8GF2TVDW0S3JN54KHCE6MUA7L", 58)),
    token("square", "shop-token", "sq0" + "csp-" + drawn(URLSAFE, 43)),
    token("new-relic", "monitoring-token", "NR" + "AK-" + drawn(UPPER32, 27)),
    token("postman", "work-tool-token", "PM" + "AK-" + drawn(HEX, 24) + "-" + drawn(HEX, 34)),
    token("jwt", "jwt", JWT, "issued {} for ann"),
    token("jwt-encrypted", "jwt", JWE),
    # --- private keys ------------------------------------------------------------------------------------------------
    block("private-key-rsa", f"RSA {PRIVATE}"),
    block("private-key-pkcs8", PRIVATE),
    block("private-key-ed25519", PRIVATE, body=ED25519),
    block("private-key-ec", f"EC {PRIVATE}", body=drawn(BASE64, 160)),
    block("private-key-openssh", f"OPENSSH {PRIVATE}", body="b3BlbnNzaC1rZXktdjEA" + drawn(BASE64, 300)),
    block("private-key-encrypted", f"ENCRYPTED {PRIVATE}"),
    block("private-key-pgp", f"PGP {PRIVATE} BLOCK", headers="Version: GnuPG v2\n\n"),
    block("private-key-with-headers", f"RSA {PRIVATE}", headers="Proc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\n"),
    Sample("private-key-in-json", {"sa": {"k": pem(PRIVATE, BODY)}}, BODY[:64], "private-key"),
    Sample("private-key-windows-lines", pem(f"RSA {PRIVATE}", BODY).replace("\n", "\r\n"), BODY[:64], "private-key"),
    Sample("private-key-without-end", pem(PRIVATE, BODY).split("-----END")[0], BODY[-64:], "private-key"),
    Sample(
        "private-key-putty",
        f"PuTTY-User-{'Key'}-File-3: ssh-ed25519\nPrivate-{'Lines'}: 1\n{BODY[:48]}\n",
        BODY[:48],
        "private-key",
    ),
    # --- headers -----------------------------------------------------------------------------------------------------
    token("header-bearer", "authorization-header", drawn(URLSAFE, 40), "Authorization: " + "Bearer {}"),
    token(
        "header-bearer-curl",
        "authorization-header",
        drawn(ALNUM, 32),
        "+ curl -sS -H 'Authorization: " + "Bearer {}' https://x.test/",
    ),
    token("header-basic", "authorization-header", BASIC, "authorization: " + "Basic {}"),
    token("header-token", "authorization-header", drawn(HEX, 40), '{{"Authorization": "token ' + '{}"}}'),
    token("header-proxy", "authorization-header", BASIC, "Proxy-Authorization: " + "Basic {}\r\nHost: x.test"),
    token("header-api-key", "password-assignment", drawn(ALNUM, 32), "X-Api-Key: " + "{}"),
    token("header-cookie", "session-cookie", drawn(URLSAFE, 32), "Cookie: theme=dark; session" + "id={}; lang=de"),
    token("header-set-cookie", "session-cookie", drawn(URLSAFE, 40), "< Set-Cookie: JSESSION" + "ID={}; Path=/; HttpOnly"),
    # --- assignments in text -----------------------------------------------------------------------------------------
    token("password-equals", "password-assignment", HUNTER, "login with pass" + "word={}"),
    token("password-colon", "password-assignment", PHRASE, "user: ann\npass" + "word: {}\nhost: db"),
    token("password-quoted", "password-assignment", "tr0ub4dor & 3", "pass" + "word = '{}'"),
    token("password-json-text", "password-assignment", HUNTER, 'got {{"user": "ann", "pass' + 'word": "{}"}}'),
    token("password-escaped-json", "password-assignment", HUNTER, 'body "{{\\"pass' + 'word\\": \\"{}\\"}}"'),
    token("password-python-repr", "password-assignment", HUNTER, "{{'pass" + "word': '{}', 'n': 1}}"),
    token("password-python-bytes", "password-assignment", HUNTER, "connect(pass" + "word=b'{}', n=1)"),
    token("password-option", "password-assignment", HUNTER, "mysql --user=ann --pass" + "word={} db"),
    token("password-option-apart", "password-assignment", HUNTER, "mysql --user ann --pass" + "word {} db"),
    token("password-pgpassword", "password-assignment", HUNTER, "PGPASS" + "WORD={} psql -h db"),
    token("password-mysql-pwd", "password-assignment", HUNTER, "MYSQL_" + "PWD={} mysqldump db"),
    token("password-env", "password-assignment", PHRASE, "DB_PASS" + "WORD={}\nDB_HOST=db"),
    token("password-yaml-passwd", "password-assignment", PHRASE, "  root_pass" + "wd: {}"),
    token("password-query", "password-assignment", HUNTER, "GET /login?user=ann&pass" + "word={}&next=/"),
    token("password-connection-string", "password-assignment", PHRASE, "Server=db;Database=x;User Id=sa;Pass" + "word={};"),
    token("password-jdbc", "password-assignment", HUNTER, "jdbc:postgresql://db/x?user=ann&pass" + "word={}"),
    token("secret-key-django", "password-assignment", "django-insecure-" + drawn(ALNUM, 50), "SECRET_" + "KEY = '{}'"),
    token("aws-secret-key", "password-assignment", drawn(BASE64, 40), "aws_secret_access_" + "key = {}"),
    token("twilio-auth-token", "password-assignment", drawn(HEX, 32), "TWILIO_AUTH_" + "TOKEN={}"),
    token("generic-api-key", "password-assignment", drawn(ALNUM, 32), "api_" + 'key: "{}"'),
    token("generic-access-token", "password-assignment", drawn(ALNUM, 40), "access_" + "token={}&expires_in=3600"),
    token("client-secret", "password-assignment", drawn(URLSAFE, 32), "--client-" + "secret {}"),
    token("netrc", "password-assignment", HUNTER, "machine db.test login ann pass" + "word {}"),
    token("password-yaml-environment", "password-assignment", PHRASE, "env:\n  - name: DB_PASS" + "WORD\n    value: {}\n"),
    token("password-xml-attribute", "password-assignment", HUNTER, '<property name="pass' + 'word" value="{}"/>'),
    token("password-xml", "password-assignment", HUNTER, "<server><pass" + "word>{}</pass" + "word></server>"),
    token("password-command-repr", "password-assignment", HUNTER, "failed: ['mysql', '--pass" + "word', '{}', 'db']"),
    token("password-with-separators", "password-assignment", "a;b,c&d<e" + "7", "pass" + "word={} host=db"),
    token("password-after-escape", "password-assignment", drawn(ALNUM, 30), '{{"log": "ok\\napi_' + 'key={}\\nbye"}}'),
    token("sql-password", "sql-password", HUNTER, "ALTER USER ann PASS" + "WORD '{}';"),
    token("sql-identified-by", "sql-password", HUNTER, "create user ann identified " + "by '{}'"),
    token("curl-user", "basic-auth-option", HUNTER, "curl -u ann:" + "{} https://x.test/"),
    # --- URLs --------------------------------------------------------------------------------------------------------
    token("url-postgres", "url-password", HUNTER, "postgres://ann:" + "{}@db.test:5432/x"),
    token("url-postgres-async", "url-password", PHRASE, "DATABASE_URL=postgresql+asyncpg://ann:" + "{}@db/x"),
    token("url-mysql", "url-password", "p%40ss%2Fw0rd", "mysql://root:" + "{}@127.0.0.1/x"),
    token("url-mongodb", "url-password", HUNTER, "mongodb+srv://ann:" + "{}@c0.abc.mongodb.net/?w=majority"),
    token("url-redis-no-user", "url-password", HUNTER, "redis://:" + "{}@cache:6379/0"),
    token("url-amqp", "url-password", HUNTER, "amqp://ann:" + "{}@mq:5672/%2f"),
    token("url-https", "url-password", drawn(ALNUM, 20), "cloning https://ann:" + "{}@git.test/x.git ..."),
    token("url-ftp", "url-password", HUNTER, "ftp://ann:" + "{}@ftp.test/pub"),
    token("url-at-sign-in-password", "url-password", "p@ss" + "w0rd", "postgres://ann:" + "{}@db.test/x"),
    # --- JSON, by the name of the key --------------------------------------------------------------------------------
    Sample("json-password", {"pass" + "word": HUNTER}, HUNTER, "named-credential"),
    Sample("json-nested", {"db": {"user": "ann", "passwd": HUNTER}}, HUNTER, "named-credential"),
    Sample("json-camel", [{"client" + "Secret": drawn(ALNUM, 32)}], drawn(ALNUM, 32), "named-credential"),
    Sample("json-kebab", {"api-" + "key": drawn(HEX, 32)}, drawn(HEX, 32), "named-credential"),
    Sample("json-header", {"x-api-" + "key": drawn(HEX, 24)}, drawn(HEX, 24), "named-credential"),
    Sample("json-env", {"env": {"DB_PASS" + "WORD": PHRASE}}, PHRASE, "named-credential"),
    Sample(
        "json-access-token",
        {"access_" + "token": drawn(URLSAFE, 48), "expires_in": 3600},
        drawn(URLSAFE, 48),
        "named-credential",
    ),
    Sample("json-refresh-token", {"refresh" + "Token": drawn(URLSAFE, 44)}, drawn(URLSAFE, 44), "named-credential"),
    Sample("json-token", {"token": drawn(ALNUM, 32)}, drawn(ALNUM, 32), "named-credential"),
    Sample("json-session", {"session_" + "token": drawn(URLSAFE, 32)}, drawn(URLSAFE, 32), "named-credential"),
    Sample("json-cookie", {"cookie": "a=" + drawn(ALNUM, 30)}, drawn(ALNUM, 30), "named-credential"),
    Sample("json-list-of-passwords", {"pass" + "words": [HUNTER, PHRASE]}, PHRASE, "named-credential"),
    Sample("json-connection", {"dsn": "postgres://ann:" + HUNTER + "@db/x"}, HUNTER, "url-password"),
    Sample("json-key-is-token", {checked("gh" + "p_"): "seen"}, checked("gh" + "p_"), "github-token"),
    Sample("json-in-string", {"stdout": json.dumps({"pass" + "word": HUNTER})}, HUNTER, "password-assignment"),
    Sample("json-environment", [{"name": "DB_PASS" + "WORD", "value": HUNTER}], HUNTER, "named-credential"),
    Sample(
        "json-deep", [[[[{"a": [{"aws_secret_access_" + "key": drawn(BASE64, 40)}]}]]]], drawn(BASE64, 40), "named-credential"
    ),
)
"""Each must be refused; none may survive in redacted output."""


def harmless(name: str, value: Any) -> Sample:
    return Sample(name, value)


SHA256 = hashlib.sha256(b"x").hexdigest()
SHA1 = hashlib.sha1(b"x").hexdigest()

NEGATIVES = (
    # --- ids and digests ---------------------------------------------------------------------------------------------
    harmless("uuid4", str(uuid.UUID(int=random.Random("uuid").getrandbits(128), version=4))),
    harmless("uuid7", {"run_id": "019cab00-0000-7000-8000-000000000001"}),
    harmless("sha256", SHA256),
    harmless("sha256-digest", {"digest": f"sha256:{SHA256}", "schema_sha256": SHA256}),
    harmless("sha512", hashlib.sha512(b"x").hexdigest()),
    harmless("sha1", SHA1),
    harmless("md5", {"md5": hashlib.md5(b"x").hexdigest(), "etag": f'"{hashlib.md5(b"y").hexdigest()}"'}),
    harmless("git-commit", f"commit {SHA1}\nAuthor: Ann <ann@example.com>\nDate:   Thu Nov 20 20:12:00 2026 +0000\n"),
    harmless("git-short", "ded0303 One parameter that nobody used"),
    harmless("git-index", "index 83db48f..bf2a4c1 100644"),
    harmless("sha256sum", f"{SHA256}  dist/app-1.2.0.tar.gz"),
    harmless("subresource-integrity", f"sha384-{base64.b64encode(hashlib.sha384(b'x').digest()).decode()}"),
    harmless("pip-hash", f"requests==2.34.2 --hash=sha256:{SHA256}"),
    harmless("docker-image", f"registry.example.com/app@sha256:{SHA256}"),
    harmless("docker-push", f"latest: digest: sha256:{SHA256} size: 1573"),
    harmless("ulid", "01ARZ3NDEKTSV4RRFFQ69G5FAV"),
    harmless("aws-arn", "arn:aws:iam::123456789012:role/deploy"),
    harmless(
        "ids-of-services", f"cus_{drawn(ALNUM, 14)} pi_3{drawn(ALNUM, 23)} req_011{drawn(ALNUM, 21)} evt_1{drawn(ALNUM, 23)}"
    ),
    harmless(
        "ids-of-models",
        {"id": f"msg_01{drawn(ALNUM, 22)}", "tool": f"toolu_01{drawn(ALNUM, 22)}", "run": f"chatcmpl-{drawn(ALNUM, 29)}"},
    ),
    harmless(
        "ids-of-sessions", {"session_id": str(uuid.UUID(int=7)), "request_id": drawn(UPPER32, 16), "trace": drawn(HEX, 32)}
    ),
    harmless(
        "next-page",
        {"next_page_token": drawn(URLSAFE, 60), "continuationToken": drawn(BASE64, 64), "nextToken": drawn(BASE64, 40)},
    ),
    harmless("base32", drawn(UPPER32, 4000)),
    harmless("base64-long", drawn(BASE64, 20_000)),
    harmless("hex-long", drawn(HEX, 20_000)),
    harmless("uppercase-20", "MAINTENANCEWINDOWSUN"),
    harmless("snake-sk", "sk_learn_pipeline_version and rk_index_of_the_last_row"),
    harmless("kebab-sk", "sk-a-very-long-branch-name-that-somebody-made"),
    harmless("hf-name", "hf_transfer_enabled_by_default_since_1"),
    # --- paths, names, versions, dates -------------------------------------------------------------------------------
    harmless("path", "/srv/app/releases/2026-11-20T20-12-00Z/build/output/report.json"),
    harmless("path-of-secrets", "/run/secrets/db-password"),
    harmless("path-windows", "C:\\Users\\ann\\AppData\\Local\\Temp\\token.txt"),
    harmless("path-node-modules", "node_modules/@babel/plugin-transform-typeof-symbol/lib/index.js"),
    harmless("semver", "1.24.0-rc.1+build.20261120"),
    harmless("iso-date", "2026-11-20T20:12:00.250Z"),
    harmless("email", "ann@example.com, bob:ops@example.com"),
    harmless("steps", {"steps": ["fetch-token", "rotate-secret", "reset_password", "publish"]}),
    harmless("record", {"idempotency_key": "release-7", "key": "2026-11-20", "token": 12, "id": "deploy", "fencing_token": 3}),
    harmless("receipt", {"fingerprint": SHA256, "owner": "ann@www:4711", "lease": {"token": 3, "expires_at": None}}),
    # --- base64 ------------------------------------------------------------------------------------------------------
    harmless("image-data-url", f"data:image/png;base64,{PNG}"),
    harmless("image", {"thumbnail": PNG}),
    harmless("image-wrapped", "\n".join(PNG[place : place + 76] for place in range(0, len(PNG), 76))),
    harmless("base64-output", base64.b64encode(b"step 3 of 5 is done, the report is ready\n" * 40).decode()),
    harmless("base64-json", base64.b64encode(json.dumps({"step": 1, "of": 5}).encode()).decode()),
    harmless("base64url-json", {"cursor": base64url(json.dumps({"after": 1234, "page": 7}).encode())}),
    harmless("public-key-ssh", "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAABgQ" + drawn(BASE64, 340) + " ann@www"),
    harmless("public-key-ed25519", "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI" + drawn(BASE64, 43) + " ann@www"),
    harmless("public-key-fingerprint", f"SHA256:{drawn(BASE64, 43)} ann@www (ED25519)"),
    harmless("public-key-pem", pem("PUBLIC KEY", drawn(BASE64, 392))),
    harmless("certificate", pem("CERTIFICATE", drawn(BASE64, 1200))),
    harmless("certificate-end", drawn(BASE64, 64) + "\n-----END CERTIFICATE-----\nok\n"),
    harmless("public-key-pgp", pem("PGP PUBLIC KEY BLOCK", drawn(BASE64, 600), "\n")),
    harmless("signature-pgp", pem("PGP SIGNATURE", drawn(BASE64, 300), "\n")),
    harmless("stripe-publishable", "pk_live_" + drawn(ALNUM, 24)),
    # --- logs --------------------------------------------------------------------------------------------------------
    harmless(
        "log-apt",
        "Get:1 http://deb.debian.org/debian bookworm/main amd64 libpam-pwquality amd64 1.4.5-1 [18.1 kB]\n"
        "Setting up passwd (1:4.13+dfsg1-1) ...\nUnpacking libsecret-1-0:amd64 (0.20.5-3) ...\n",
    ),
    harmless(
        "log-pip",
        "Collecting detect-secrets==1.5.0\n  Downloading detect_secrets-1.5.0-py3-none-any.whl (120 kB)\n"
        "Successfully installed PyJWT-2.10.1 passlib-1.7.4 python-dotenv-1.0.1 tokenizers-0.21.0\n",
    ),
    harmless("log-docker", f"Step 4/9 : COPY . /app\n ---> Using cache\n ---> {SHA256[:12]}\nSuccessfully built {SHA1[:12]}\n"),
    harmless(
        "log-pytest",
        "tests/test_auth.py::test_password_is_hashed PASSED [ 12%]\ntests/test_auth.py::test_token[expired] FAILED\n"
        "E       assert 'token' in response\n===== 1 failed, 41 passed in 3.02s =====\n",
    ),
    harmless(
        "log-rsync",
        "sending incremental file list\nsecrets/README.md\n          1,024 100%    0.00kB/s    0:00:00 (xfr#1, to-chk=0/2)\n",
    ),
    harmless(
        "log-ssh", 'debug1: Next authentication method: password\nAuthenticated to db.test ([10.0.0.7]:22) using "publickey".\n'
    ),
    harmless("log-nginx", '10.0.0.7 - ann [20/Nov/2026:20:12:00 +0000] "POST /api/token HTTP/1.1" 200 512 "-" "curl/8.5.0"'),
    harmless("log-kubernetes", "secret/db-credentials created\nserviceaccount/token-refresher unchanged\n"),
    harmless(
        "log-stack", '  File "auth.py", line 12, in check\n    return verify(password=password, token=self.token)\nTypeError\n'
    ),
    harmless("log-prompt", "Password for ann:\nPassword: \nLogin ok\n"),
    harmless("log-authorization", "Authorization: none, falling back to anonymous; bearer tokens are not accepted here"),
    harmless("log-minutes", "12:30:45 took 3m2s; ratio 3:4; AA:BB:CC:DD:EE:FF is the bridge"),
    # --- prose -------------------------------------------------------------------------------------------------------
    harmless("prose-password", "the password was changed and the secret is safe; ask bob for the api key"),
    harmless("prose-token", "token 3 was issued, next token: 4"),
    harmless("prose-token-number", "token: 7"),
    harmless("prose-token-equals", "token=12 stale, fencing_token=13"),
    harmless("prose-key", "key: 2026-11-20, secret santa is on friday, primary key=id"),
    harmless("prose-password-colon", "two things about the password: it is long, and it is rotated"),
    harmless("prose-bearer", "the bearer of this note may pass; basic authentication is off"),
    harmless("prose-keys", "-----BEGIN RSA " + "PRIVATE KEY----- is the first line of it, and an END line is the last"),
    harmless("prose-jwt", "a token has three parts: eyJ..., the claims and a signature"),
    harmless(
        "prose-syntax-error", "SyntaxError: Unexpected token '}' in JSON, invalid token 'abc'; error: secret 'db' not found"
    ),
    harmless("prose-sql", "a library identified by 'name', and a user who was identified by 'ann'"),
    harmless("html-access-key", '<a accesskey="p" href="x.html">previous</a>'),
    harmless("code", "def f(password: str, secret = tmp_path, private_key: KeyTypes = None): return get(token=settings.token)"),
    harmless(
        "our-own-option", "checkpoint-tool update --allow-secret private-key --note x; open(id, allow_secret=allow_secret)"
    ),
    harmless("prose-option", "give it --password or --token on the command line, --secret twice"),
    harmless("prose-note", "built 3 of 5"),
    harmless("password-empty", "password: \npassword=\npassword=''\n"),
    harmless("password-boolean", "password: true, secret=false, token = null, PASSWORD=None, passwd: yes"),
    harmless("password-policy", "password_policy=strict password_min_length=12 max_tokens=4096 secret_count: 3"),
    # --- placeholders and references ---------------------------------------------------------------------------------
    harmless("placeholder-variable", 'mysql --password=$DB_PASSWORD --user=ann && PGPASSWORD="${PGPASSWORD}" psql'),
    harmless("placeholder-actions", "password: ${{ secrets.DB_PASSWORD }}"),
    harmless("placeholder-angle", {"password": "<redacted>", "api_key": "<your api key>"}),
    harmless("placeholder-stars", "password=*** api_key: ******** token=xxxxxxxx"),
    harmless("placeholder-redacted", {"password": "[redacted: named-credential]", "secret": "[REDACTED]"}),
    harmless("placeholder-call", "password = os.environ['DB_PASSWORD']; token = getenv(\"TOKEN\"); secret=$(cat secret.txt)"),
    harmless("placeholder-template", "api_key: {{ vault_api_key }}, password: %(password)s, secret: %s, pwd={pwd}"),
    harmless("placeholder-url", "postgres://ann:$DB_PASSWORD@db/x https://ann:***@git.test/x postgres://ann:<password>@db/x"),
    harmless("placeholder-header", "curl -H \"Authorization: Bearer $TOKEN\" -H 'X-Api-Key: ${KEY}' https://x.test/"),
    harmless(
        "reference-names",
        {
            "secret_name": "db-main",
            "password_file": "/run/secrets/db",
            "token_path": "a/b",
            "secret_ref": "prod/db",
            "key_id": "k1",
        },
    ),
    harmless("reference-values", {"password": "vault:kv/db#password", "api_key": "env:API_KEY", "secret": "@secret.txt"}),
    harmless("reference-path", {"password": "/run/secrets/db", "private_key": "~/.ssh/id_ed25519", "secret": "./secret.txt"}),
    harmless(
        "reference-store",
        {"secret": "arn:aws:secretsmanager:eu-west-1:123456789012:secret:db-AbCdEf", "token": "op://vault/db/token"},
    ),
    harmless("named-empty", {"password": "", "token": None, "secret": [], "api_key": {}}),
    harmless(
        "named-facts",
        {"password_changed_at": "2026-11-20", "has_password": True, "token_count": 3, "tokens": 4096, "password": False},
    ),
    harmless("named-numbers", {"token": 12, "access_token_ttl": 3600, "max_tokens": "4096", "token_type": "Bearer"}),
    harmless("named-digests", {"password_sha256": SHA256, "token_hash": SHA256, "secret_digest": f"sha256:{SHA256}"}),
    harmless(
        "named-pairs", [{"name": "DB_HOST", "value": "db"}, {"name": "password", "value": "$DB_PASSWORD"}, {"key": "token"}]
    ),
    harmless("json-null", '{"password":null,"token":false,"secret":"","n":1}'),
    harmless("comparison", "if password == other: ... if (token !== undefined && secret != null)"),
    harmless(
        "named-others",
        {"author": "ann", "passenger": "bob", "bypass": "lane 7", "secretary": "eve", "compass": "north", "keyboard": "de"},
    ),
    harmless("public-key-field", {"public_key": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI" + drawn(BASE64, 43)}),
    # --- URLs without a password -------------------------------------------------------------------------------------
    harmless("url", "https://example.com/a/b?c=d&e=f#g"),
    harmless("url-user", "ssh://git@git.test:22/x.git postgres://ann@db/x"),
    harmless("url-scp", "git@github.com:ann/app.git"),
    harmless("url-port-and-at", "https://example.com:8443/@ann/post http://localhost:3000/users/@me"),
    harmless("url-npm", "https://registry.example.com/@scope/name/-/name-1.0.0.tgz"),
    harmless("url-signed-name", "https://example.com/?signature=none&sig=v1&design=blue"),
)
"""Each must pass untouched, as a value and as output."""
