"""A server that speaks as OpenAI's does, and answers what prompt and seed decide."""

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread


class FakeServer:
    """asked: all requests so far. act(body): what it does instead of answering, (status, content), or None."""

    def __init__(self):
        self.asked, self.act = [], lambda body: None
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args):
                pass

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                fake.asked.append(json.dumps(body, sort_keys=True))
                status, content = fake.act(body) or (200, fake.answer(body))
                content = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    @staticmethod
    def answer(body):
        said = f"{body['messages'][-1]['content']} {body.get('seed')}"
        return {"choices": [{"message": {"role": "assistant", "content": said}, "finish_reason": "stop"}]}

    def stop(self):
        self.server.shutdown()
        self.server.server_close()
