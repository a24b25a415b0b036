"""A Hub on this machine for tests: the requests of huggingface_hub and datasets that load JSON lines files."""

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote


class _Hub(BaseHTTPRequestHandler):
    """Serve the repositories `root/OWNER/NAME/COMMIT/…`. The branch main is the last commit."""

    root: Path
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = unquote(self.path.partition("?")[0])
        for prefix, between, serve in (
            ("/api/datasets", r"/revision/", self._commit),
            ("/api/datasets", r"/tree/", self._tree),
            ("/datasets", r"/resolve/", self._file),
        ):
            if found := re.fullmatch(rf"{prefix}/(\w+/\w+){between}([^/]+)/?(.*)", path):
                commits = sorted(folder.name for folder in (self.root / found[1]).glob("*"))
                commit = {"main": commits[-1]}.get(found[2], found[2]) if commits else ""
                if commit not in commits:
                    return self._answer(b"{}", 404, X_Error_Code="RevisionNotFound")
                return serve(self.root / found[1] / commit, found[3])
        return self._answer(b"{}", 404, X_Error_Code="RepoNotFound")

    do_HEAD = do_GET

    def _commit(self, folder: Path, name: str) -> None:
        files = [{"rfilename": path.relative_to(folder).as_posix()} for path in folder.rglob("*.*")]
        self._answer(json.dumps({"id": "x/y", "sha": folder.name, "siblings": files}).encode())

    def _tree(self, folder: Path, name: str) -> None:
        entries = [
            {"type": "file", "path": path.relative_to(folder).as_posix(), "size": path.stat().st_size, "oid": "0" * 40}
            for path in sorted((folder / name).iterdir())
        ]
        self._answer(json.dumps(entries).encode())

    def _file(self, folder: Path, name: str) -> None:
        path = folder / name
        if not path.is_file():
            return self._answer(b"", 404, X_Error_Code="EntryNotFound", X_Repo_Commit=folder.name)
        data = path.read_bytes()
        return self._answer(data, ETag=f'"{hashlib.sha1(data).hexdigest()}"', X_Repo_Commit=folder.name)

    def _answer(self, body: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@contextmanager
def hub(root: Path) -> Iterator[str]:
    """Yield the address of a Hub with the data sets below `root`, for HF_ENDPOINT."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Hub", (_Hub,), {"root": root}))
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
