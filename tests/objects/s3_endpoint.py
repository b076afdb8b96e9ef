"""A real S3 endpoint on loopback, and an address in it for each test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer


@pytest.fixture(scope="session")
def endpoint() -> Iterator[None]:
    """S3 on loopback, and the variables by which it is found."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    before = dict(os.environ)
    os.environ.update(settings)
    import boto3

    boto3.client("s3", endpoint_url=settings["AWS_ENDPOINT_URL"]).create_bucket(Bucket="livers")
    yield
    server.stop()
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def prefix(endpoint: None, request: pytest.FixtureRequest) -> Path:
    """Path of a store of its own: s3://livers/<test>."""
    return Path(f"s3://livers/{request.node.name}")
