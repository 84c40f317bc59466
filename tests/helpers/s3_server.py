"""An S3 server (moto's) in this process, with one bucket, for the tests of storage at URIs."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

from moto.server import ThreadedMotoServer
from pyarrow import fs

BUCKET = "bucket"
SECRET = "secret-of-the-tests"


@contextmanager
def s3_server() -> Iterator[str]:
    """Runs the server and sets the variables that AWS's libraries read; yields the URI of the bucket."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # else a line for each request
    server.start()
    host, port = server.get_host_and_port()
    variables = {
        "AWS_ACCESS_KEY_ID": "key-of-the-tests",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    with mock.patch.dict(os.environ, variables):
        try:
            filesystem = fs.S3FileSystem(
                endpoint_override=variables["AWS_ENDPOINT_URL"], allow_bucket_creation=True
            )
            filesystem.create_dir(BUCKET)
            yield f"s3://{BUCKET}"
        finally:
            server.stop()
