"""A shard on a web server that fails as it is told to, and caches to fetch it into."""

import hashlib
import http.server

from vlad.data.options import FetchOptions
from vlad.data.storage.shard_cache import ShardCache

SHARD = bytes(range(256)) * 1200  # 300 kB
SUM = hashlib.sha256(SHARD).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers as the server's plan for the path says, and counts what it is asked."""

    def do_GET(self):
        asked = self.server.asked
        with self.server.guard:
            asked[self.path] += 1
            plan = self.server.plans.get(self.path.partition("?")[0], [])
            behaviour = plan.pop(0) if plan else "whole"
        data = self.server.files.get(self.path.partition("?")[0])
        if data is None:
            self.send_error(404)
        elif isinstance(behaviour, int):
            self.send_response(behaviour)
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif behaviour == "drop":
            self.close_connection = True
        elif behaviour == "unsized":
            self.send_response(200)
            self.end_headers()
            self.wfile.write(data)
        else:
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if behaviour == "stall":
                self.wfile.write(data[:1000])
                self.wfile.flush()
                self.server.released.wait(20)
            elif behaviour == "slow":
                self.server.released.wait(20)
                self.wfile.write(data)
            elif behaviour == "truncate":
                self.wfile.write(data[: len(data) // 2])
            elif behaviour == "garble":
                self.wfile.write(bytes(len(data)))
            else:
                self.wfile.write(data)

    def log_message(self, *arguments):
        pass


def cache(directory, **changes):
    options = {"retries": 3, "timeout_seconds": 5.0, "backoff_seconds": 0.001, "max_bytes": 10**7, **changes}
    return ShardCache(FetchOptions(str(directory), **options))


def left(directory):
    """The kinds of files in a cache, without its locks and leases."""
    return sorted(path.suffix for path in directory.iterdir() if path.suffix not in ("", ".lock", ".lease"))
