"""What agents ask of the tests' market over HTTPS: enrolment, proofs, specs, uploads, commits."""

import base64
import hashlib
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from agent import protocol
from agent.protocol import File
from tests.agent.store import Sent, read, reply

if TYPE_CHECKING:
    from tests.agent.market import Market


class Endpoints:
    """/agent/v1, for a market."""

    def __init__(self, market: "Market") -> None:
        self.market = market

    async def app(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        body = await read(receive)
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        status, answer = self._answer(scope["path"], headers, body)
        data = answer if isinstance(answer, bytes) else protocol.encode(answer)
        await reply(send, status, data)

    def _answer(self, path: str, headers: dict[str, str], body: bytes) -> Any:
        if self.market.faults.unavailable:
            self.market.faults.unavailable -= 1
            return 503, protocol.Problem(code="unavailable", message="away for a moment")
        parts = path.removeprefix("/agent/v1/").split("/")
        if parts == ["enrol"]:
            return self.enrol(protocol.decode(body, protocol.EnrolRequest))
        if headers.get("authorization", "").removeprefix("Bearer ") not in self.market.bearers:
            return 401, protocol.Problem(code="unauthenticated", message="no such bearer")
        if parts[0] == "proof":
            return self._proof(parts[1:], body)
        if parts[0] != "assignments" or UUID(parts[1]) not in self.market.specs:
            return 404, protocol.Problem(code="missing", message="there is no such assignment")
        return self._of_assignment(UUID(parts[1]), parts, body)

    def _of_assignment(self, id: UUID, parts: list[str], body: bytes) -> Any:
        if parts[2] == "spec":
            return 200, self.market.specs[id]
        if id not in self.market.wanted:
            return 409, protocol.Problem(code="conflict", message="this lease is over")
        if parts[2] == "secrets":
            if self.market.secrets is None:
                return 403, protocol.Problem(code="forbidden", message="not to such a site")
            return 200, protocol.SecretValues(values=self.market.secrets)
        if parts[2] == "inputs":
            urls = {
                sha: f"{self.market.url}/store/get/{sha}?{uuid4()}"
                for sha in self.market.store.objects
            }
            return 200, protocol.InputUrls(urls=urls)
        if parts[2] == "layers":
            if self.market.layers is None:
                return 409, protocol.Problem(code="conflict", message="its image is gone")
            return 200, self.market.layers
        if parts[2] == "uploads":
            return self._grant(id, protocol.decode(body, protocol.UploadRequest))
        return self._commit(id, protocol.decode(body, protocol.CommitRequest))

    def enrol(self, request: protocol.EnrolRequest) -> Any:
        said = protocol.enrol_bytes(request.token, request.public_key)
        Ed25519PublicKey.from_public_bytes(request.public_key).verify(request.proof, said)
        if request.token not in self.market.tokens:
            message = "there is no such enrolment token"
            if request.token == "used-token":
                message = "this enrolment token is used up; make a new one on the site's page"
            if request.token == "old-token":
                message = "this enrolment token has expired; make a new one on the site's page"
            return 401, protocol.Problem(code="unauthenticated", message=message)
        self.market.tokens.discard(request.token)
        return 201, self.market.admit(request.public_key)

    def _proof(self, parts: list[str], body: bytes) -> Any:
        if self.market.proof_task is None:
            return 404, protocol.Problem(code="missing", message="no proof is due")
        if not parts:
            return 200, self.market.proof_task
        with self.market.noting():
            if parts[1] == "commit":
                self.market.proof_commit = protocol.decode(body, protocol.ProofCommit)
                return 200, protocol.ProofChallenge(cells=[(0, 1), (1, 5)])
            self.market.proof_opening = protocol.decode(body, protocol.ProofOpening)
            self.market.proof_task = None
        return 204, b""

    def _grant(self, id: UUID, request: protocol.UploadRequest) -> Any:
        if request.epoch != self.market.wanted[id].epoch or id in self.market.fenced:
            return 409, protocol.Problem(code="conflict", message="another lease has taken over")
        if self.market.faults.refuse_uploads:
            return 413, protocol.Problem(code="too_large", message="the quota is used up")
        return 200, protocol.UploadReply(
            files=[self._upload(id, request, f) for f in request.files]
        )

    def _upload(
        self, id: UUID, request: protocol.UploadRequest, file: protocol.FileToSend
    ) -> protocol.Upload:
        name = f"{id}/{request.kind}-{request.step}/{file.path}"
        upload = file.upload_id or (str(uuid4()) if len(file.parts) > 1 else None)
        puts = []
        for number, part in enumerate(file.parts):
            assert part.bytes <= protocol.PART_BYTES
            query = f"part={number}&upload={upload or ''}&until={uuid4()}"
            checksum = base64.b64encode(bytes.fromhex(part.sha256)).decode()
            headers = {"content-length": str(part.bytes), "x-amz-checksum-sha256": checksum}
            url = f"{self.market.url}/store/put/{name}?{query}"
            puts.append(protocol.Put(url=url, headers=headers))
        return protocol.Upload(path=file.path, upload_id=upload, puts=puts)

    def _commit(self, id: UUID, request: protocol.CommitRequest) -> Any:
        if request.epoch != self.market.wanted[id].epoch or id in self.market.fenced:
            return 409, protocol.Problem(code="conflict", message="another lease has taken over")
        found = {}
        for file in request.files:
            name = f"{id}/{request.kind}-{request.step}/{file.path}"
            if file.upload_id:
                parts = self.market.store.uploads.get(file.upload_id, {})
                self.market.store.objects[name] = b"".join(
                    parts[number] for number in sorted(parts)
                )
                assert len(file.etags) == len(parts)
            data = self.market.store.objects.get(name)
            if data is None or hashlib.sha256(data).hexdigest() != file.sha256:
                return 409, protocol.Problem(code="conflict", message=f"{file.path} not arrived")
            found[file.path] = data
        with self.market.noting():
            self.market.commits += 1
            self.market.folders.append(
                Sent(
                    request.kind,
                    request.step,
                    found,
                    request.seconds,
                    request.running_ms,
                    request.place,
                )
            )
        if self.market.faults.lose_commits:
            self.market.faults.lose_commits -= 1
            return 503, protocol.Problem(code="unavailable", message="the answer is lost")
        manifest = [File(path=f.path, bytes=f.bytes, sha256=f.sha256) for f in request.files]
        return 200, protocol.CommitReply(manifest=protocol.manifest_sha256(manifest))
