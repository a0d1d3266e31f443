import asyncio
import hashlib
import multiprocessing
import os
import time
import urllib.parse

# What the workers share: gunicorn loads this before it makes them.
limit = int(os.environ["LIMIT"])
in_flight = multiprocessing.Value("i", 0)
acked = multiprocessing.Event()


async def app(scope, receive, send):
    if scope["type"] == "websocket":
        await echo(receive, send)
        return
    if scope["type"] != "http":
        raise NotImplementedError(scope["type"])
    query = dict(urllib.parse.parse_qsl(scope["query_string"].decode()))

    async def begin(status=200, headers=None):
        await send({"type": "http.response.start", "status": status, "headers": headers or []})

    async def end(text):
        await send({"type": "http.response.body", "body": text.encode()})

    match scope["path"]:
        case "/env":
            await begin()
            await end(os.environ[query["name"]])
        case "/worker":
            time.sleep(0.1)  # meanwhile another worker takes the next connection
            await begin(headers=[(b"connection", b"close")])
            await end(str(os.getpid()))
        case "/sleep":
            with in_flight:
                in_flight.value += 1
                few = in_flight.value <= limit
            await begin(200 if few else 500)
            await asyncio.sleep(int(query["ms"]) / 1000)
            with in_flight:
                in_flight.value -= 1
            await end("slept")
        case "/events":
            await begin(headers=[(b"content-type", b"text/event-stream")])
            await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
            while not acked.is_set():  # another worker may get it
                await asyncio.sleep(0.01)
            await end("data: 2\n\n")
        case "/ack":
            acked.set()
            await begin()
            await end("")
        case "/upload":
            digest, size, more = hashlib.sha256(), 0, True
            while more:
                message = await receive()
                digest.update(message.get("body", b""))
                size += len(message.get("body", b""))
                more = message.get("more_body", False)
            said = dict(scope["headers"]).get(b"content-length", b"-1").decode()
            await begin()
            await end(f"{digest.hexdigest()} {size} {said}\n")
        case _:
            await begin(404)
            await end("")


async def echo(receive, send):
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "bytes": message.get("bytes"), "text": message.get("text")})
