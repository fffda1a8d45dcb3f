"""A page to play with."""

import socket
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.exit_codes import importing
from pipeline.common.errors import UserError

Half = Annotated[bool, typer.Option("--half", help="Store weights in half precision: half the download.")]
Runtime = Annotated[
    Path | None,
    typer.Option(help="onnxruntime-web as npm installs it, copied into the page; default: the page asks a CDN for it."),
]


def web(
    bundle: Annotated[Path, typer.Argument(help="Folder that `export` wrote.")],
    out: Annotated[Path, typer.Argument(help="Folder for the page; any web server can serve it.")],
    half: Half = False,
    runtime: Runtime = None,
) -> None:
    """Write a page that fuses photographs in the browser."""
    with importing():
        from pipeline.inference.web import write_page

    made = write_page(bundle, out, half=half, runtime=runtime)
    levels = made.difference * 127.5
    print(f"{out}: {made.bytes / 1e6:.1f} MB; differs from torch by {levels:.2g} of 255 levels at most")


def play(
    bundle: Annotated[Path, typer.Argument(help="Folder that `export` or `web` wrote.")],
    half: Half = False,
    runtime: Runtime = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8000,
) -> None:
    """Fuse photographs in a browser: serves the page on this machine until Ctrl-C."""
    with importing():
        from pipeline.inference.serving import ADDRESS, page_server
        from pipeline.inference.web import read_page, write_page

    written = read_page(bundle) is not None
    if written and (half or runtime is not None):
        raise UserError(f"play {bundle}: is a page already; --half and --runtime are for a bundle")
    with tempfile.TemporaryDirectory(prefix="latentfuse-") as temporary:
        page = bundle if written else Path(temporary) / "page"
        with page_server(page, port) as server:
            if not written:
                print(f"{bundle}: making the page, which takes half a minute", flush=True)
                write_page(bundle, page, half=half, runtime=runtime)
            port = server.server_address[1]
            print(f"http://{ADDRESS}:{port}   (Ctrl-C ends it)")
            print(f"From another machine: ssh -L {port}:{ADDRESS}:{port} {socket.gethostname()}", flush=True)
            server.serve_forever()
