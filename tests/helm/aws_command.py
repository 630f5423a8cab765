"""As much of the `aws` command as the scripts of the chart call, with botocore: `aws_command.py s3api head-bucket ...`.

The scripts run with the real one in a container; here they meet a real SeaweedFS through this.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import botocore.session
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import ClientError

READ: dict[str, Callable[[str], Any]] = {
    "cors-configuration": json.loads,
    "max-keys": int,
    "body": lambda path: Path(path).read_bytes(),
}
NAMES = {"cors-configuration": "CORSConfiguration"}


def main(arguments: list[str]) -> int:
    group, operation, *rest = arguments
    assert group == "s3api", arguments
    parameters: dict[str, Any] = {}
    signed = True
    while rest:
        option = rest.pop(0).removeprefix("--")
        if option == "no-sign-request":
            signed = False
            continue
        text = rest.pop(0)
        text = Path(text.removeprefix("file://")).read_text() if text.startswith("file://") else text
        name = NAMES.get(option) or "".join(map(str.title, option.split("-")))
        parameters[name] = READ.get(option, str)(text)
    config = Config(
        signature_version=None if signed else UNSIGNED, s3={"addressing_style": "path"}, retries={"max_attempts": 1}
    )
    client = botocore.session.get_session().create_client(
        "s3",
        endpoint_url=os.environ["AWS_ENDPOINT_URL_S3"],
        region_name=os.environ["AWS_DEFAULT_REGION"],
        config=config,
    )
    method = re.sub(r"-(?=v\d)", "_", operation).replace("-", "_")
    try:
        getattr(client, method)(**parameters)
    except ClientError as error:
        sys.stderr.write(f"{error}\n")
        return 254
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
