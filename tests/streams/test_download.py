import hashlib
import http.server
import sys
import threading

import pytest

from sparcl.errors import DataError
from sparcl.streams.download import Remote, fetch

CONTENT = b"official"


@pytest.fixture
def server():
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", str(len(CONTENT)))
            self.end_headers()
            self.wfile.write(CONTENT)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}/"
        httpd.shutdown()
        thread.join()


def remote(url, content=CONTENT):
    return Remote("file.bin", f"{url}file.bin", hashlib.md5(content).hexdigest())


def test_a_file_with_the_right_checksum_is_kept(server, tmp_path, capfd):
    (path,) = fetch([remote(server)], tmp_path / "new")
    assert path == tmp_path / "new" / "file.bin"
    assert path.read_bytes() == CONTENT
    assert capfd.readouterr().err == ""


def test_a_wrong_checksum_is_refused_and_nothing_is_left(server, tmp_path):
    with pytest.raises(DataError, match="checksum differs"):
        fetch([remote(server, b"another")], tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []


def test_without_network_the_error_says_which_file_to_put_where(tmp_path):
    with pytest.raises(DataError) as caught:
        fetch([remote("http://nowhere.invalid/data/")], tmp_path)
    message = str(caught.value)
    assert f"put file.bin into {tmp_path} by hand (from http://nowhere.invalid/data/)" in message
    assert "\n" not in message


def test_without_pooch_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(DataError, match=r"put file\.bin into .* or pip install \"sparcl-edge\[download\]\""):
        fetch([remote("http://nowhere.invalid/")], tmp_path)
