"""An HTTP endpoint of any model that `refinedet.load` takes. README.md says how to start it and what it answers."""

import argparse
import os
import signal
from typing import Annotated

import litserve
from fastapi import Body, HTTPException

import refinedet


class Detect(litserve.LitAPI):
    def __init__(self, model: str) -> None:
        super().__init__(api_path="/detect")
        self.model = model

    def setup(self, device: str) -> None:  # in each worker: what __init__ has goes to it pickled
        self.detector = refinedet.load(self.model, device)

    def decode_request(self, request: Annotated[bytes, Body(media_type="image/*")]) -> bytes:
        return request  # the annotation makes the body the file itself; without it LitServe expects JSON

    def predict(self, image: bytes) -> list[dict]:
        try:
            (found,) = self.detector.detect(image, score_threshold=0.5)
        except refinedet.errors.DataError as error:
            raise HTTPException(400, str(error)) from None
        rows = zip(found.names, found.scores.tolist(), found.boxes.tolist(), strict=True)
        return [{"class": name, "score": score, "box": box} for name, score, box in rows]


if __name__ == "__main__":  # the workers import this file
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--accelerator", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--workers", type=int, default=1, help="processes per device")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # LitServe ends its processes at Ctrl-C alone,
    os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL))  # and them by SIGTERM
    server = litserve.LitServer(
        Detect(options.model),
        accelerator=options.accelerator,
        workers_per_device=options.workers,
        max_payload_size=32 << 20,  # bytes
    )
    server.run(options.host, options.port, generate_client_file=False)
