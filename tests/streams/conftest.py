"""Every test here has a cache of its own, and no network beyond the local host."""

import os
import socket
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("SPARCL_CACHE", str(folder))
    return folder


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    real = socket.getaddrinfo

    def local_only(host, *arguments, **options):
        if host != "127.0.0.1":
            raise socket.gaierror(f"the tests look up no names, not even {host}")
        return real(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", local_only)
    monkeypatch.setenv("NO_PROXY", "*")


@pytest.fixture(scope="session")
def shared_data():
    """The folder with real images; tests that need it are skipped where it is absent."""
    beside = Path(__file__).parents[3] / "shared" / "data"
    folder = Path(os.environ.get("SPARCL_TEST_DATA", beside))
    if not folder.is_dir():
        pytest.skip("no real images here (SPARCL_TEST_DATA)")
    return folder
