"""Records what FastAPI and Python's json module answer, for tests/it/fastapi.rs and tests/it/cors.rs.

Run with Python 3.11: pip install fastapi==0.165.0 starlette==1.10.0 httpx && python tests/it/reference/record.py
Writes tests/it/reference/fastapi.jsonl and tests/it/reference/json_errors.jsonl.
"""
import json
from pathlib import Path

from fastapi import FastAPI, HTTPException
from fastapi.middleware.cors import CORSMiddleware
from fastapi.testclient import TestClient

HERE = Path(__file__).parent
app = FastAPI()
app.add_middleware(
    CORSMiddleware,
    allow_origins=["http://localhost:8081", "http://localhost:5173", "https://app.example"],
    allow_origin_regex=r"http://(localhost|127\.0\.0\.1):\d+",
    allow_credentials=True,
    allow_methods=["*"],
    allow_headers=["*"],
)


@app.post("/generate")
def generate(body: dict):
    raise HTTPException(422, "prompt field is required.")


@app.get("/health")
def health():
    return {}


JSON = {"content-type": "application/json"}
BODIES = [
    b"", b"null", b"[1]", b'"text"', b"1.5", b"true", b"{}", b'{"prompt": ""}', b'[{"a": [1, {"b": null}]}]', b"{prompt: 1}",
    b"\xff\xff", b"{\"a\": \"\xff\"}", b"\xef\xbb\xbf{}", b"  \n", b'{"a": "\xc3\xa9\\q"}',
]
TYPES = [
    None, "text/plain", "application/json; charset=utf-8", "APPLICATION/JSON", "application/vnd.api+json", "application/jsonp",
    "text/json", "application/x-www-form-urlencoded", "multipart/form-data", "",
]
ORIGINS = [
    "http://localhost:5173", "http://localhost:8081", "http://localhost:1", "http://127.0.0.1:9999", "https://app.example",
    "http://localhost", "http://localhost:", "http://localhost:80a", "https://localhost:5173", "http://localhost:5173.evil.example",
    "http://evil.example", "https://app.example.evil.example", "null", "http://127.0.0.2:80", "HTTP://LOCALHOST:5173",
]


def requests():
    for body in BODIES:
        yield "POST", "/generate", JSON, body
    for kind in TYPES:
        yield "POST", "/generate", {} if kind is None else {"content-type": kind}, b'{"prompt": ""}'
        yield "POST", "/generate", {} if kind is None else {"content-type": kind}, b""
    for method in ["GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS"]:
        yield method, "/generate", {}, b""
    for method in ["HEAD", "POST", "OPTIONS"]:
        yield method, "/health", {}, b""
    for path in ["/nope", "/nope/", "/health/", "/health//", "/generate/", "/health/?a=1&b=%20", "/Health"]:
        yield "GET", path, {}, b""
        yield "POST", path, {}, b""
    yield "GET", "/health/", {"origin": ORIGINS[0]}, b""
    for origin in ORIGINS:
        yield "GET", "/nope", {"origin": origin}, b""
        yield "POST", "/generate", {"origin": origin, **JSON}, b"{}"
        yield "PUT", "/generate", {"origin": origin}, b""
        asked = {"origin": origin, "access-control-request-method": "POST"}
        yield "OPTIONS", "/generate", asked, b""
        yield "OPTIONS", "/generate", {**asked, "access-control-request-headers": "content-type,x-y"}, b""
        yield "OPTIONS", "/nope", {**asked, "access-control-request-method": "BREW"}, b""
        yield "OPTIONS", "/generate", {**asked, "access-control-request-private-network": "true"}, b""
        yield "OPTIONS", "/generate", {"origin": origin}, b""
    yield "OPTIONS", "/generate", {"access-control-request-method": "POST"}, b""


def record(client):
    for method, path, headers, body in requests():
        reply = client.request(method, path, headers=headers, content=body, follow_redirects=False)
        yield {
            "method": method, "path": path, "headers": headers, "body": body.decode("latin-1"), "status": reply.status_code,
            "reply_headers": dict(sorted(reply.headers.items())), "reply": reply.text,
        }


TEXTS = """
{|[|{"a"|{"a":|{"a":1|{"a":1,|{"a":1,}|{"a" 1}|{"a":1 "b":2}|{a:1}|{'a':1}|{,}|{"a"::1}|{1:2}|{"a":}|{"a":1}}|{"a":1} x|{"a":[1,2}
[1,]|[,]|[1 2]|[1|[1,|[[]|[]]|["a]|["a|[1}|[tru]|[nul]|nul|True|None|undefined|'a'|"a|"|"\\|"\\x"|"\\u|"\\u1|"\\u12"|"\\u123g"|"\\u1234
"a\tb"|{"a":"\x01"}|{"a":"x\\"|01|-|--1|1.|1.e5|.5|1e|1e+|1e5x|+1|0x10|1_000|{"\\":1}|{"a":"é\\q"}|{"é":}|{"日本":"語" "x"}|// a|{"a":1}//
 {"a" : 1 , }| [ 1 , ]|{"a":1,,}|[1,,2]|{"a":NaNN}|[Infinit]|-Infinit|{"a":"b"c}|<html>|prompt=a&b=c|{"a":{"b":{"c":[1,{"d":}]}}}|{"a": tru}
""".strip("\n").replace("\n", "|").split("|") + ["", " ", "\n\n", '{"a":"line\nbreak"}', "[" * 500, "[" * 500 + "1"]


def json_errors():
    for text in TEXTS:
        try:
            json.loads(text.encode())
        except json.JSONDecodeError as error:
            yield {"text": text, "position": error.pos, "message": error.msg}
        else:
            raise SystemExit(f"no error: {text!r}")


def write(name, rows):
    (HERE / name).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


write("fastapi.jsonl", record(TestClient(app)))
write("json_errors.jsonl", json_errors())
