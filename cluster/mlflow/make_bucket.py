"""Make the bucket that MLflow's artifacts go to, if it is not there: run once before the server starts.

The endpoint is MLFLOW_S3_ENDPOINT_URL; the keys are AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY. An object
storage that is not up yet is tried again for two minutes.
"""

from __future__ import annotations

import os
import sys
import time

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError, ConnectionError, HTTPClientError

WAIT_S = 120.0


def make_bucket(name: str, endpoint: str) -> None:
    """Create `name` at `endpoint`; one that exists and is ours is left alone."""
    client = boto3.client(
        "s3",
        endpoint_url=endpoint,
        config=Config(connect_timeout=5, read_timeout=10, retries={"max_attempts": 1}),
    )
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            client.create_bucket(Bucket=name)
            return
        except client.exceptions.BucketAlreadyOwnedByYou:
            return
        except (ClientError, ConnectionError, HTTPClientError) as error:
            status = getattr(error, "response", {}).get("ResponseMetadata", {}).get("HTTPStatusCode", 503)
            if status < 500 or time.monotonic() > deadline:
                raise
            time.sleep(2.0)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: make_bucket.py NAME")
    make_bucket(sys.argv[1], os.environ["MLFLOW_S3_ENDPOINT_URL"])
