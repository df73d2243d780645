"""Enough of a wandb server for the real client to log a run to it, on this machine."""

from __future__ import annotations

import gzip
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PROJECT = {"id": "p", "internalId": "p", "name": "samplernn", "entity": {"id": "e", "name": "someone"}}


class WandbServer:
    """Answers as wandb's server does, and keeps what it is given.

    Args:
        vanish_after: a GraphQL operation; once it is answered nobody is there any more.
    """

    def __init__(self, vanish_after: str | None = None) -> None:
        self.vanish_after = vanish_after
        self.rows: list[dict[str, Any]] = []
        """Of the history, in the order of their offsets."""
        self.files: dict[str, bytes] = {}
        """What was uploaded, by name."""
        self.finished: list[int] = []
        """Exit codes."""
        self.asked: list[tuple[str, dict[str, Any]]] = []
        """GraphQL operations with their variables."""
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()

    def __enter__(self) -> WandbServer:
        return self

    def __exit__(self, *error: object) -> None:
        self.vanish()

    def vanish(self) -> None:
        """Refuse connections from now on."""
        self._http.shutdown()
        self._http.server_close()

    def answer(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        """The `data` of a GraphQL response."""
        self.asked.append((operation, variables))
        bucket = {"id": "b", "name": variables.get("name"), "historyLineCount": len(self.rows)}
        if operation == "Viewer":
            return {"viewer": {"id": "u", "entity": "someone", "username": "someone", "flags": "{}"}}
        if operation == "RunResumeStatus":
            resumed = {**bucket, "historyTail": json.dumps([json.dumps(row) for row in self.rows[-1:]])}
            nothing = {"summaryMetrics": "{}", "eventsTail": "[]", "config": "{}", "wandbConfig": '{"t": 1}'}
            counts = {"logLineCount": 0, "eventsLineCount": 0}
            return {"model": {**PROJECT, "bucket": {**resumed, **nothing, **counts}} if self.rows else None}
        if operation == "UpsertBucket":
            return {"upsertBucket": {"bucket": {**bucket, "project": PROJECT}, "inserted": not self.rows}}
        if operation == "CreateRunFiles":
            files = [{"name": name, "uploadUrl": f"{self.url}/{name}"} for name in variables["files"]]
            return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}
        return self._artifact(operation, variables)

    def _artifact(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        if operation == "CreateArtifact":
            sequence = {"latestArtifact": None}
            return {
                "createArtifact": {"artifact": {"id": "a", "state": "PENDING", "artifactSequence": sequence}}
            }
        if operation == "CreateArtifactManifest":
            file = {"id": "f", "uploadUrl": f"{self.url}/manifest", "uploadHeaders": []}
            return {"createArtifactManifest": {"artifactManifest": {"id": "m", "file": file}}}
        if operation == "CreateArtifactFiles":
            nodes = [
                {
                    "storagePath": "x",
                    "uploadUrl": f"{self.url}/artifact/{file['name']}",
                    "uploadHeaders": [],
                    "artifact": {"id": "a"},
                }
                for file in variables["input"]["artifactFiles"]
            ]
            return {"createArtifactFiles": {"files": {"edges": [{"node": node} for node in nodes]}}}
        if operation == "CommitArtifact":
            return {"commitArtifact": {"artifact": {"id": "a", "digest": "d"}}}
        if operation == "ArtifactByID":
            return {"artifact": ARTIFACT}
        return {"project": None}


ARTIFACT = {
    "__typename": "Artifact",
    "id": "a",
    "artifactSequence": {"__typename": "ArtifactSequence", "name": "model", "project": PROJECT},
    "versionIndex": 0,
    "artifactType": {"name": "model"},
    "description": None,
    "metadata": "{}",
    "ttlDurationSeconds": -1,
    "ttlIsInherited": False,
    "tags": [],
    "historyStep": None,
    "state": "COMMITTED",
    "size": 1,
    "digest": "d",
    "commitHash": "c",
    "fileCount": 1,
    "createdAt": "2026-01-01T00:00:00Z",
    "updatedAt": "2026-01-01T00:00:00Z",
    "aliases": [],
}


def _handler(server: WandbServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._respond({})

        def do_PUT(self) -> None:
            server.files[self.path.lstrip("/")] = self._body()
            self._respond({})

        def do_POST(self) -> None:
            asked = json.loads(self._body() or b"{}")
            if self.path != "/graphql":
                history = asked.get("files", {}).get("wandb-history.jsonl")
                if history:
                    server.rows[history["offset"] :] = [json.loads(row) for row in history["content"]]
                if asked.get("complete"):
                    server.finished.append(asked["exitcode"])
                self._respond({})
                return
            # Some queries name themselves only in their text: query ArtifactByID($id: ID!) { …
            words = asked["query"].replace("(", " ").split()
            operation = asked.get("operationName") or words[1]
            self._respond({"data": server.answer(operation, asked.get("variables") or {})})
            if operation == server.vanish_after:
                server.vanish()

        def _body(self) -> bytes:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

        def _respond(self, answer: dict[str, Any]) -> None:
            body = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            """Silence."""

    return Handler
