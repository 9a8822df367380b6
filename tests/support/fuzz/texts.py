"""Texts, numbers and keys that have broken programs before."""

from __future__ import annotations

from tests.support.fuzz.encoding import Raw

RUNES = (
    "\N{GRINNING FACE}",
    "e\N{COMBINING ACUTE ACCENT}\N{COMBINING DIAERESIS}",
    "\N{ARABIC LETTER ALEF}\N{RIGHT-TO-LEFT OVERRIDE}b",
    "\N{ZERO WIDTH SPACE}",
    "\N{FULLWIDTH DIGIT ONE}",
    "\N{ARABIC-INDIC DIGIT THREE}",
    "\N{LATIN SMALL LETTER DOTLESS I}",
    "\N{NO-BREAK SPACE}",
    "\N{LINE SEPARATOR}",
    "\x00",
    "\x1b[31m",
    "\x7f",
    "\ud800",
    "\udfff",
    "\ud83d\ud83d",
    "\ufffe",
    "\N{BYTE ORDER MARK}",
)
QUANTITIES = (
    "0", "-1", "+1", "1e3", "1E3", "1e-3", "1e400", "1.", ".5", "01", "0x10", "1_000", "1K", "1k", "1Ki", "1Kib", "1Ei", "9E",
    "1n", "1u", "0.1m", "0.0000000001", "1m", "999999999999999999999", "1Pi", "1.0000001Pi", "1024Ti", "1025Ti", "100k",
    "100000", "100000.1", "100001", " 1", "1 ", "1\n", "1Gi\n", "1 Gi", "\N{ARABIC-INDIC DIGIT THREE}", "Inf", "NaN", "Request",
    "request", "", 0, -1, 1.5, 2**63, True,
)  # fmt: skip
NAMES = (
    "a..b", ".", "..", "-", "-a", "a-", "a.-b", "A", "a_b", "a b", "a\n", "a/b", "/", "a" * 63, "a" * 64, "a" * 253, "a" * 254,
    "1", "0x1", "true", "null", "xn--a", "a.b.c", "${HOME}", "$(NAME)", "{{ a }}", "%s", "../../etc/passwd", "a,b", "a=b",
    "workspace", "tmp", "rows", "model", "kube-root-ca.crt", "default",
)  # fmt: skip
KEYS = (
    "", "a b", "a/b/c", "/a", "a/", "A.B/c", "a..b/c", "x" * 64, "x" * 253 + "/y", "x" * 254 + "/y", "job-name",
    "controller-uid", "finetune.dev/job", "finetune.dev.evil/job", "batch.kubernetes.io/job-name",
    "app.kubernetes.io/managed-by", "kueue.x-k8s.io/queue-name", "kubernetes.io/hostname", "kubernetes.io/os",
    "node.kubernetes.io/not-ready", "nvidia.com/gpu.product", "cluster-autoscaler.kubernetes.io/safe-to-evict",
    "pod-security.kubernetes.io/enforce", "container.apparmor.security.beta.kubernetes.io/trainer",
    "seccomp.security.alpha.kubernetes.io/pod", "scheduler.alpha.kubernetes.io/defaultTolerations",
    "kubectl.kubernetes.io/last-applied-configuration", "batch.kubernetes.io/job-tracking", "__proto__", "a\n", "\x00",
    "\N{GRINNING FACE}", "class", "None", "loop", "messages",
)  # fmt: skip
URLS = (
    "http://", "https://", "HTTP://a", "http:/a", "http:///a", "//a", "http://a b", "http://a\tb", "http://a\n", "http://u:p@a",
    "http://a?x=1", "http://a#f", "http://[::1", "http://[::1]:99999", "http://a:0", "http://a:-1", "http://a:99999999",
    "http://169.254.169.254/", "http://0x7f.1", "http://2130706433/", "http://\N{GRINNING FACE}.example", "http://a/%00",
    "http://a/../..", "http://a\\b", "javascript:a", "file:///etc/passwd", "s3://", "s3://b", "s3://b/", "s3://b//k", "s3://b/k?x",
    "s3://-bb/k", "s3://bbb/" + "k" * 1016, "s3://bbb/k\n", "s3://bbb/\x00", "gs://bbb/../k", "az://acc/cont/k", "az://ACC/cont/k",
    "az://acc/-c/k", "s3://bbb/\N{GRINNING FACE}", "S3://bbb/k",
)  # fmt: skip
PATHS = (
    "", "/", "/a", "a/", "a//b", ".", "..", "a/..", "a/./b", "...", "a/...", " ", "a b", "a\n", "a\\..\\b", "~", "a\x00b",
    "\N{GRINNING FACE}" * 128, "\N{FULLWIDTH FULL STOP}\N{FULLWIDTH FULL STOP}/a", "a:b", "con", "$(rm -rf)", "a" * 256,
)  # fmt: skip
NUMBERS = (
    Raw("1e3"), Raw("1e0"), Raw("-0"), Raw("-0.0"), Raw("1.0"), Raw("1.5"), Raw("16e-1"), Raw("1e400"), Raw("1e-400"),
    Raw("9007199254740993"), Raw("9223372036854775807"), Raw("9223372036854775808"), Raw("1" + "0" * 400), Raw("0.1e1"),
    Raw("1E+2"), Raw("NaN"), Raw("Infinity"), Raw("0x10"), Raw("01"), Raw("1_000"), Raw("+1"), "NaN", "Infinity", "1", "",
    True, False, None, 0, -1, 0.30000000000000004, 5e-324, 1.7976931348623157e308,
)  # fmt: skip
