"""Environment variables about the network, which the operator sets from the chart and the FineTuneJob.

The proxy variables are those of curl and most other programs. A lower-case name takes precedence over the same name in
upper case.
"""

from __future__ import annotations

HTTPS_PROXY = "HTTPS_PROXY"
HTTP_PROXY = "HTTP_PROXY"
ALL_PROXY = "ALL_PROXY"
NO_PROXY = "NO_PROXY"
PROXY_VARIABLES = (HTTPS_PROXY, HTTP_PROXY, ALL_PROXY)

HUB = "HF_ENDPOINT"
"""Base URL of the administrator's hub."""
JOB_HUB = "FINETUNE_JOB_HUB"
"""Base URL of the FineTuneJob's own hub, which takes precedence."""

JOB_PROXIES = "FINETUNE_JOB_PROXIES"
"""Names of the proxy variables that come from the FineTuneJob and not from the administrator, separated by spaces."""

CA_BUNDLE = "FINETUNE_CA_BUNDLE"
"""Paths of PEM files with certificate authorities to trust in addition to the system's, separated by colons."""
