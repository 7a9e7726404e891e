"""What of a URL is a secret: `user:password@`, and the values of signed or keyed queries.

The URL as it was given stands in one place, `inputs.url`, because a worker needs it; that table is as secret as the list it came from.
Everything else (images, exports, outcomes, logs, reports) has the redacted one.
"""

from __future__ import annotations

import re

HIDDEN = "REDACTED"
NAMES = (r"x-amz-[a-z-]+|x-goog-[a-z-]+|x-oss-[a-z-]+|awsaccesskeyid|key-pair-id|signature|sig|policy|token|[a-z_-]*token|api[_-]?key|"
         r"key|secret|[a-z_-]*secret|password|passwd|pwd|auth|authorization|hmac|hash_key|credential|session|sas|sv|se|sp|sr|st|skoid|sktid")
USERINFO = r"^([A-Za-z][A-Za-z0-9+.-]*://)[^/?#]*@"
QUERY = rf"(?i)([?&;](?:{NAMES})=)[^&;#]+"
SUSPECT = rf"{USERINFO}|{QUERY.replace('(?i)', '')}"  # RE2 and re both take it, with case ignored
_USERINFO, _QUERY = re.compile(USERINFO), re.compile(QUERY)


def redact(url: str) -> str:
    """The URL without its secrets; the same text where it has none."""
    return _QUERY.sub(rf"\g<1>{HIDDEN}", _USERINFO.sub(r"\g<1>", url))
